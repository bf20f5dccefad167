"""The body parameters of the OpenAI routes as tables: one place for what is checked, documented and refused.

A parameter is honoured, accepted (it changes nothing here, and nobody is misled by that) or refused by name. What the
values mean is decided by the modules of the routes, not here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from tampu.core.errors import InvalidRequestError

IGNORED_HEADER = "x-tampu-ignored"  # names the body members that no version of the protocol knows

_TYPE_NAMES = {
    "string": "a string",
    "number": "a number",
    "integer": "an integer",
    "boolean": "true or false",
    "array": "an array",
    "object": "an object",
}
_MAX_SHOWN_CHARS = 60
_MAX_UNKNOWN = 32  # each one is compared with every known name
_INT64 = 2**63


class Treatment(StrEnum):
    """What happens with a parameter."""

    HONOURED = "honoured"
    ACCEPTED = "accepted"  # without effect, and none is needed
    REFUSED = "refused"  # 400 naming it, unless the value is one of `harmless`


@dataclass(frozen=True, slots=True)
class Parameter:
    """One member of a request body. `schema` is JSON Schema; null always means that the member is absent."""

    name: str
    schema: Mapping[str, Any]
    note: str = ""
    treatment: Treatment = Treatment.HONOURED
    harmless: tuple[Any, ...] = ()  # values of a refused parameter that ask for nothing


def accepted(name: str, schema: Mapping[str, Any], note: str) -> Parameter:
    """A parameter without effect."""
    return Parameter(name, schema, note, Treatment.ACCEPTED)


def refused(name: str, note: str, *harmless: Any) -> Parameter:
    """A parameter we cannot honour; `note` completes the sentence "'name' is not supported: ..."."""
    return Parameter(name, {}, note, Treatment.REFUSED, harmless)


TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
OBJECT = {"type": "object"}


def _number(low: float, high: float) -> dict[str, Any]:
    return {"type": "number", "minimum": low, "maximum": high}


def _integer(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


STREAM = Parameter("stream", FLAG, "Server-sent events instead of one body.")
_SAMPLING = (
    Parameter("temperature", _number(0, 5), "0 = always the most likely token. Default 0.6."),
    Parameter("top_p", _number(0, 2), "1 and above = off."),
    Parameter("top_k", _integer(-1, 2**31 - 1), "-1 and 0 = off."),
    Parameter("min_p", _number(0, 1), "0 = off."),
    Parameter("frequency_penalty", _number(-2, 2), "Subtracted for each earlier occurrence in the answer."),
    Parameter("presence_penalty", _number(-2, 2), "Subtracted once for tokens of the answer."),
    Parameter("repetition_penalty", _number(0, 100), "Divides and multiplies logits of tokens seen; 0 and 1 = off."),
    Parameter(
        "logit_bias",
        {"type": "object", "maxProperties": 1024, "additionalProperties": _number(-100, 100)},
        "Token id (as a string) to what is added to its logit.",
    ),
    Parameter("seed", _integer(-_INT64, _INT64 - 1), "The same seed gives the same answer, under any load."),
    Parameter(
        "stop",
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "Strings that end the answer; they are not part of it.",
    ),
    Parameter("max_tokens", _integer(1, 2**31 - 1), "Longest answer, in tokens. Default 256."),
    Parameter("n", _integer(1, 128), "Number of answers."),
    Parameter("ignore_eos", FLAG, "Go on after the model's end mark, up to max_tokens."),
    Parameter("guided_json", OBJECT, "A JSON schema that the answer must meet; not with a `response_format`."),
    Parameter("lora", TEXT, "Id or name of an adapter."),
)
_STREAM_OPTIONS = Parameter(
    "stream_options",
    {"type": "object", "properties": {"include_usage": FLAG, "include_obfuscation": FLAG}},
    "`include_usage: false` leaves usage out of the last chunk, which holds it otherwise.",
)
_OPTIONS = Parameter(
    "options",
    {"type": "object", "properties": {"rejectIfBusy": FLAG}},
    "`rejectIfBusy`: answer 3040 instead of waiting for a free place.",
)
_HARMLESS = (
    accepted("user", TEXT, "Not stored."),
    accepted("safety_identifier", TEXT, "Not stored."),
    accepted("metadata", OBJECT, "Not stored."),
    accepted("prompt_cache_key", TEXT, "Equal prompts share their cache without it."),
    accepted("prompt_cache_retention", TEXT, "The prefix cache keeps what fits."),
    refused("store", "nothing is stored here", False),
    refused("service_tier", "there is one tier", "auto", "default"),
)
_FOREIGN = (
    refused("chat_template_kwargs", "the chat template is fixed", {}),
    refused("chat_template", "the chat template is fixed"),
    refused("guided_regex", "send 'response_format' with a JSON schema"),
    refused("guided_choice", "send 'response_format' with a JSON schema that has an enum"),
    refused("guided_grammar", "send 'response_format' with a JSON schema"),
    refused("grammar", "send 'response_format' with a JSON schema"),
    refused("structured_outputs", "send 'response_format' with a JSON schema", {}),
    refused("stop_token_ids", "use 'stop' with the text", []),
    refused("min_tokens", "an answer ends where the model ends it; see 'ignore_eos'", 0),
    refused("use_beam_search", "answers are sampled", False),
    refused("length_penalty", "answers are sampled", 1, 1.0),
    refused("prompt_logprobs", "log probabilities are given for the answer only", 0),
    refused("continue_final_message", "the answer is always a new turn", False),
    refused("add_generation_prompt", "the answer is always a new turn", True),
    refused("image", "this model reads text only", []),
    refused("raw", "send the prompt to /completions", False),
)

CHAT_PARAMETERS = (
    Parameter("model", TEXT, "A name from the models list."),
    Parameter("messages", {"type": "array", "items": OBJECT, "minItems": 1}, "The conversation; text only."),
    STREAM,
    *_SAMPLING,
    Parameter("max_completion_tokens", _integer(1, 2**31 - 1), "The newer name of max_tokens; it wins."),
    _STREAM_OPTIONS,
    Parameter("logprobs", FLAG, "Log probability of each token of the answer."),
    Parameter("top_logprobs", _integer(0, 20), "Also the most likely alternatives; needs logprobs: true."),
    Parameter("response_format", OBJECT, "text, json_object, or json_schema (bare or in OpenAI's wrapper)."),
    Parameter("tools", {"type": "array", "items": OBJECT, "maxItems": 1024}, "Functions that the model may call."),
    Parameter("tool_choice", {"anyOf": [TEXT, OBJECT]}, "auto, none, required, or one function."),
    Parameter("parallel_tool_calls", FLAG, "false = at most one call."),
    Parameter("functions", {"type": "array", "items": OBJECT, "maxItems": 1024}, "The older form of tools."),
    Parameter("function_call", {"anyOf": [TEXT, OBJECT]}, "The older form of tool_choice."),
    _OPTIONS,
    *_HARMLESS,
    refused("reasoning_effort", "this model does not reason before it answers", "none"),
    refused("verbosity", "ask for it in the messages", "medium"),
    refused("modalities", "this model writes text only", ["text"]),
    refused("audio", "this model writes text only"),
    refused("prediction", "predicted outputs are not used here"),
    refused("web_search_options", "this server does not search"),
    refused("best_of", "use 'n'", 1),
    refused("prompt", "send it to /completions, or as a message"),
    *_FOREIGN,
)

COMPLETION_PARAMETERS = (
    Parameter("model", TEXT, "A name from the models list."),
    Parameter(
        "prompt",
        {
            "anyOf": [
                TEXT,
                {"type": "array", "items": TEXT},
                {"type": "array", "items": {"type": "integer", "minimum": 0}},
                {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
            ]
        },
        "A text, a list of texts, the token ids of one prompt, or a list of those. No chat template is applied.",
    ),
    STREAM,
    *_SAMPLING,
    _STREAM_OPTIONS,
    Parameter("logprobs", _integer(0, 20), "Log probabilities of the answer's tokens and this many alternatives."),
    Parameter("echo", FLAG, "Repeat the prompt before the answer; not together with logprobs."),
    Parameter("best_of", _integer(1, 128), "Only equal to n: every answer is returned."),
    Parameter("response_format", OBJECT, "text, json_object, or json_schema (bare or in OpenAI's wrapper)."),
    _OPTIONS,
    *_HARMLESS,
    refused("suffix", "this model cannot fill in the middle", ""),
    refused("messages", "send them to /chat/completions"),
    refused("tools", "send them to /chat/completions", []),
    *(parameter for parameter in _FOREIGN if parameter.name != "raw"),
    refused("raw", "a completion is always raw", True),
)

RESPONSES_PARAMETERS = (
    Parameter("model", TEXT, "A name from the models list."),
    Parameter(
        "input",
        {"anyOf": [TEXT, {"type": "array", "items": OBJECT}]},
        "A text, or messages, function calls and their outputs; text only.",
    ),
    Parameter("instructions", TEXT, "A system message before the input."),
    STREAM,
    *(parameter for parameter in _SAMPLING if parameter.name not in ("n", "max_tokens", "stop", "guided_json")),
    Parameter("max_output_tokens", _integer(1, 2**31 - 1), "Longest answer, in tokens. Default 256."),
    Parameter("top_logprobs", _integer(0, 20), "Log probabilities with this many alternatives."),
    Parameter("include", {"type": "array", "items": TEXT}, "Only message.output_text.logprobs has an effect."),
    Parameter("text", OBJECT, "`format`: text, json_object or json_schema."),
    Parameter("tools", {"type": "array", "items": OBJECT, "maxItems": 1024}, "Functions that the model may call."),
    Parameter("tool_choice", {"anyOf": [TEXT, OBJECT]}, "auto, none, required, or one function."),
    Parameter("parallel_tool_calls", FLAG, "false = at most one call."),
    Parameter("stream_options", {"type": "object", "properties": {"include_obfuscation": FLAG}}, "Obfuscation is off."),
    Parameter("metadata", OBJECT, "Repeated in the answer, not stored."),
    _OPTIONS,
    *(parameter for parameter in _HARMLESS if parameter.name != "metadata"),
    accepted("max_tool_calls", _integer(0, 2**31 - 1), "It limits built-in tools, and there are none."),
    refused("previous_response_id", "nothing is stored here; send the whole conversation"),
    refused("conversation", "nothing is stored here; send the whole conversation"),
    refused("background", "answers are not stored", False),
    refused("truncation", "a conversation is never cut silently", "disabled"),
    refused("reasoning", "this model does not reason before it answers", {}, {"effort": "none"}),
    refused("prompt", "prompt templates are not stored here"),
    refused("moderation", "nothing is moderated here"),
    refused("context_management", "a conversation is never cut silently", []),
    refused("messages", "send them as 'input', or to /chat/completions"),
    refused("max_tokens", "its name is 'max_output_tokens' here"),
    refused("n", "there is one answer", 1),
    refused("stop", "send it to /chat/completions", []),
    refused("guided_json", "send a JSON schema as 'text/format'"),
    *_FOREIGN,
)

EMBEDDING_PARAMETERS = (
    Parameter("model", TEXT, "An embedding model from the models list."),
    Parameter(
        "input",
        {"anyOf": [TEXT, {"type": "array", "items": TEXT}]},
        "A text or a list of texts. Token ids are refused: they would be another tokenizer's.",
    ),
    Parameter("encoding_format", {"type": "string", "enum": ["float", "base64"]}, "Default float."),
    Parameter("dimensions", _integer(1, 2**31 - 1), "Ignored unless it is the model's own; refused in strict mode."),
    accepted("user", TEXT, "Not stored."),
    refused("input_type", "texts of every kind are embedded alike", "query", "document", "passage"),
    refused("truncate_prompt_tokens", "see the model's own limit"),
)


def read_parameters(parameters: Iterable[Parameter], body: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The checked members of a body without nulls, and the names of unknown members.

    Raises:
        InvalidRequestError: for a wrong value, for a refused parameter, and for a name that is nearly a known one.
    """
    if not isinstance(body, dict):
        raise InvalidRequestError("", "the body must be a JSON object", hint="Send one JSON object.")
    known = {parameter.name: parameter for parameter in parameters}
    values: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in body.items():
        if value is None:
            continue
        parameter = known.get(name)
        if parameter is None:
            unknown.append(name)
            if len(unknown) > _MAX_UNKNOWN:
                raise InvalidRequestError(name[:100], f"the body has more than {_MAX_UNKNOWN} unknown members")
            _refuse_misspelling(name, known)
        elif parameter.treatment is Treatment.REFUSED:
            if not any(value == harmless and type(value) is type(harmless) for harmless in parameter.harmless):
                raise _refusal(parameter, value)
        else:
            values[name] = _checked(value, parameter.schema, name)
    return values, tuple(unknown)


def required(values: Mapping[str, Any], name: str) -> Any:
    """A member that must be there. Raises InvalidRequestError."""
    if name not in values:
        raise InvalidRequestError(name, f"'{name}' is missing", hint=f"Send '{name}'.")
    return values[name]


def request_schema(parameters: Iterable[Parameter], required: tuple[str, ...]) -> dict[str, Any]:
    """JSON Schema of a body, for the OpenAPI document. Refused parameters are not part of it."""
    properties = {
        parameter.name: {**_nullable(parameter.schema, parameter.name in required), "description": parameter.note}
        for parameter in parameters
        if parameter.treatment is not Treatment.REFUSED
    }
    return {"type": "object", "properties": properties, "required": list(required)}


def parameter_table(parameters: Iterable[Parameter]) -> str:
    """A Markdown table of the parameters, for the documentation."""
    lines = ["| parameter | values | what happens |", "|---|---|---|"]
    for parameter in sorted(parameters, key=lambda each: (list(Treatment).index(each.treatment), each.name)):
        if parameter.treatment is Treatment.REFUSED:
            harmless = " or ".join(f"`{_shown(value)}`" for value in parameter.harmless)
            values = f"only {harmless}" if harmless else "none"
            what = f"refused by name: {parameter.note}"
        else:
            values = _wanted(parameter.schema) if "anyOf" not in parameter.schema else "see note"
            what = parameter.note if parameter.treatment is Treatment.HONOURED else f"no effect: {parameter.note}"
        lines.append(f"| `{parameter.name}` | {values} | {what} |")
    return "\n".join(lines)


def ignored_header(names: tuple[str, ...]) -> dict[str, str]:
    """The header that names ignored members; empty when there are none."""
    if not names:
        return {}
    shown = ", ".join(name for name in names if name.isascii() and name.isprintable())
    return {IGNORED_HEADER: shown[:400] or "(unprintable)"}


def _nullable(schema: Mapping[str, Any], is_required: bool) -> dict[str, Any]:
    return dict(schema) if is_required else {"anyOf": [dict(schema), {"type": "null"}]}


def _refusal(parameter: Parameter, value: Any) -> InvalidRequestError:
    name = parameter.name
    sentence = f"'{name}' is not supported: {parameter.note}"
    if parameter.harmless:
        allowed = " or ".join(_shown(harmless) for harmless in parameter.harmless)
        return InvalidRequestError(name, sentence, hint=f"Leave it out or send {allowed}, not {_shown(value)}.")
    return InvalidRequestError(name, sentence, hint="Leave it out.")


def _refuse_misspelling(name: str, known: Mapping[str, Parameter]) -> None:
    nearest = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.86)
    if nearest:
        raise InvalidRequestError(
            name[:100], f"there is no parameter '{name[:100]}'", hint=f"Did you mean '{nearest[0]}'?"
        )


def _checked(value: Any, schema: Mapping[str, Any], path: str) -> Any:
    """The value, whole floats as integers where integers are wanted. Knows the keywords of the tables above."""
    if "anyOf" in schema:
        return value  # read, with better words, by whoever knows the meaning
    wanted = schema.get("type")
    if wanted == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not _has_type(value, wanted) or not _is_in_range(value, schema):
        raise InvalidRequestError(path, f"'{path}' must be {_wanted(schema)}, not {_shown(value)}")
    if isinstance(value, dict):
        return _checked_members(value, schema, path)
    if isinstance(value, list):
        _check_size(len(value), schema.get("minItems", 0), schema.get("maxItems"), path, "items")
    return value


def _checked_members(value: dict[str, Any], schema: Mapping[str, Any], path: str) -> dict[str, Any]:
    _check_size(len(value), 0, schema.get("maxProperties"), path, "members")
    properties = schema.get("properties", {})
    additional = schema.get("additionalProperties", {})
    return {
        name: _checked(member, properties.get(name, additional), f"{path}/{name}")
        for name, member in value.items()
        if member is not None
    }


def _check_size(size: int, fewest: int, most: int | None, path: str, what: str) -> None:
    if size < fewest:
        raise InvalidRequestError(path, f"'{path}' must have at least {fewest} {what}")
    if most is not None and size > most:
        raise InvalidRequestError(path, f"'{path}' must have at most {most} {what}, not {size}")


def _has_type(value: Any, wanted: str | None) -> bool:
    match wanted:
        case None:
            return True
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
    return isinstance(value, dict)


def _is_in_range(value: Any, schema: Mapping[str, Any]) -> bool:
    if "enum" in schema:
        return value in schema["enum"]
    if "minimum" in schema:
        return bool(schema["minimum"] <= value <= schema["maximum"])
    return True


def _wanted(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(_shown(value) for value in schema["enum"])
    words = _TYPE_NAMES.get(schema.get("type", ""), "another value")
    return f"{words} from {schema['minimum']} to {schema['maximum']}" if "minimum" in schema else words


def _shown(value: Any) -> str:
    """A value in an error message: JSON, cut."""
    try:
        text = orjson.dumps(value).decode()
    except (TypeError, ValueError):  # integers beyond 64 bits
        text = str(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
