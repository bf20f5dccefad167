"""The body of the run endpoint to a `GenerateRequest`: validated word for word like the hosted service's, then read.

Default mode accepts more than the page (null content, text parts, stop strings, JSON mode, ...); strict mode does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tampu.api.cabidela import SchemaMismatchError, validate
from tampu.api.config import ServerConfig
from tampu.api.conversation import content_text, parse_messages, parse_tools
from tampu.api.errors import ApiError
from tampu.api.parameter_tables import shown
from tampu.api.run_schema import INPUT_SCHEMA
from tampu.api.wire_options import (
    parse_json_mode,
    parse_logit_bias,
    parse_offered_choice,
    parse_stop,
    parse_tool_choice,
)
from tampu.core.errors import InvalidRequestError
from tampu.core.sampling_params import SamplingParams
from tampu.serving.requests import FunctionSpec, GenerateRequest, ToolChoice

T = TypeVar("T")

_PROMPT_BRANCH = 0
_NO_STOPS: tuple[str, ...] = ()
_NO_BIAS: tuple[tuple[int, float], ...] = ()
_PATH = re.compile(r"'(/[^']*)'")


@dataclass(frozen=True, slots=True)
class NativeRequest:
    """What a run body asks for. `notes` are remarks for the envelope's `messages` array."""

    generate: GenerateRequest
    is_stream: bool
    notes: tuple[str, ...] = ()


def parse_native_request(
    payload: Any, *, model: str, request_id: str, tenant: str, config: ServerConfig
) -> NativeRequest:
    """Validate and translate a body; `payload` is ours to change.

    Raises:
        ApiError: 5006 with the hosted service's text, 8001 for what its validator lets pass and no model can answer.
        InvalidRequestError: for a known extra field with a value we cannot honour.
    """
    if not config.is_strict:
        _flatten_contents(payload)
    names_max_tokens = isinstance(payload, dict) and payload.get("max_tokens") is not None
    try:
        branch = validate(INPUT_SCHEMA, payload)
    except SchemaMismatchError as error:
        raise ApiError(5006, str(error), hint=_hint(payload, str(error)), param=_field_of(str(error))) from None
    if not names_max_tokens:
        payload["max_tokens"] = _extra(
            lambda: _max_completion_tokens(payload, config), config.default_max_tokens, config
        )
    if payload["max_tokens"] < 1:
        raise _cannot_answer("max_tokens", f"max_tokens must be at least 1, not {shown(payload['max_tokens'])}")
    notes: list[str] = []
    _check_image(payload, config, notes)
    if payload.get("lora") is not None:
        raise ApiError(5005, model, param="lora", hint="Leave 'lora' out: no adapter is loaded here.")
    base = GenerateRequest(
        model=model,
        sampling=_sampling(
            payload,
            min_p=_extra(lambda: _min_p(payload), 0.0, config),
            logit_bias=_extra(lambda: parse_logit_bias(payload.get("logit_bias")), _NO_BIAS, config),
        ),
        seed=int(payload["seed"]) if "seed" in payload else None,
        stop=_extra(lambda: parse_stop(payload.get("stop")), _NO_STOPS, config),
        ignore_eos=payload.get("ignore_eos") is True,
        response_format=_extra(
            lambda: parse_json_mode(payload.get("response_format"), payload.get("guided_json")), None, config
        ),
        tenant=tenant,
        request_id=request_id,
    )
    if branch == _PROMPT_BRANCH:
        _refuse_demand(payload, config, notes, reason="a 'prompt' has no place for them")
        generate = replace(base, prompt=payload["prompt"], is_raw=payload["raw"])
    else:
        generate = _conversation(payload, base, notes, config)
    return NativeRequest(generate, payload["stream"], tuple(notes))


def _extra(read: Callable[[], T], otherwise: T, config: ServerConfig) -> T:
    """A field the page does not name: the hosted service lets any value of it pass, and so does strict mode."""
    try:
        return read()
    except InvalidRequestError:
        if config.is_strict:
            return otherwise
        raise


def _conversation(
    payload: dict[str, Any], base: GenerateRequest, notes: list[str], config: ServerConfig
) -> GenerateRequest:
    """A body of the Messages branch."""
    messages = payload["messages"]
    if isinstance(messages, dict):  # an object with index keys passes the validator, as it does there
        messages = list(messages.values())
    for index, item in enumerate(messages):
        if not isinstance(item, dict):
            raise _cannot_answer(f"messages/{index}", f"messages/{index} must be an object with role and content")
    conversation = parse_messages(messages)
    if payload.get("raw") is True:
        _refuse_demand(payload, config, notes, reason="a 'raw' prompt has no place for them")
        prompt = "".join(message.content for message in conversation)
        return replace(base, prompt=prompt, is_raw=True)
    tools = payload.get("tools")
    functions = payload.get("functions")

    def leave_out(place: str, problem: str) -> None:
        notes.append(f"'{place}' {problem} and was left out.")

    specs = parse_tools(tools, leave_out) if isinstance(tools, list) else ()
    embedded: list[FunctionSpec] = []
    for index, item in enumerate(functions if isinstance(functions, list) else ()):
        if isinstance(item, dict):
            embedded.append(FunctionSpec(item["name"], item["code"]))
        else:
            leave_out(f"functions/{index}", "is not an object")
    if embedded and not config.runs_functions:
        raise ApiError(
            8001,
            "the parameter 'functions' is off on a server that others can reach",
            param="functions",
            hint="Start it with --enable-functions to let requests run JavaScript in its sandbox.",
        )
    offered = {spec.name for spec in specs} | {spec.name for spec in embedded}
    tool_choice = _extra(lambda: parse_offered_choice(payload.get("tool_choice"), offered), ToolChoice(), config)
    return replace(
        base,
        messages=conversation,
        tools=specs,
        tool_choice=tool_choice,
        parallel_tool_calls=_extra(lambda: _parallel_tool_calls(payload), True, config),
        functions=tuple(embedded),
    )


def _parallel_tool_calls(payload: dict[str, Any]) -> bool:
    value = payload.get("parallel_tool_calls")
    if not isinstance(value, bool | None):
        raise InvalidRequestError(
            "parallel_tool_calls", f"'parallel_tool_calls' must be true or false, not {shown(value)}"
        )
    return value is not False


def _refuse_demand(payload: dict[str, Any], config: ServerConfig, notes: list[str], *, reason: str) -> None:
    """A prompt that no template sees cannot offer tools: a demand is refused, an offer noted."""
    choice = _extra(lambda: parse_tool_choice(payload.get("tool_choice")), ToolChoice(), config)
    if choice.mode in ("required", "named") and not config.is_strict:
        raise InvalidRequestError(
            "tool_choice",
            f"'tool_choice' demands a call, and {reason}: no tools are offered to the model",
            hint="Send the conversation as 'messages', without 'raw'.",
        )
    notes += [f"'{name}' was ignored: {reason}." for name in ("tools", "functions") if payload.get(name)]


def _cannot_answer(field: str, sentence: str) -> ApiError:
    """A refusal of the model layer: the validator let it pass."""
    return ApiError(8001, sentence, param=field)


def _flatten_contents(payload: Any) -> None:
    """Turn null contents and arrays of text parts into strings, in place; leave what is not text to the validator."""
    messages = payload.get("messages") if isinstance(payload, dict) else None
    if not isinstance(messages, list):
        return
    for item in messages:
        if not isinstance(item, dict):
            continue
        if item.get("content") is None and ("content" in item or item.get("tool_calls")):
            item["content"] = ""
        elif isinstance(item.get("content"), list):
            try:
                item["content"] = content_text(item["content"], "content")
            except InvalidRequestError:
                continue


def _max_completion_tokens(payload: dict[str, Any], config: ServerConfig) -> int:
    """OpenAI's newer name of the limit, or the default."""
    value = payload.get("max_completion_tokens")
    if value is None:
        return config.default_max_tokens
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(
            "max_completion_tokens", f"'max_completion_tokens' must be an integer, not {shown(value)}"
        )
    return value


def _check_image(payload: dict[str, Any], config: ServerConfig, notes: list[str]) -> None:
    if payload.get("image") is None:
        return
    if not config.is_image_ignored:
        raise ApiError(
            8001,
            "the parameter 'image' is not supported by this text-only model",
            param="image",
            hint="Leave 'image' out, or start the server with --ignore-image to have it dropped.",
        )
    notes.append("'image' was ignored: this model reads text only.")


def _sampling(payload: dict[str, Any], *, min_p: float, logit_bias: tuple[tuple[int, float], ...]) -> SamplingParams:
    return SamplingParams(
        temperature=float(payload["temperature"]),
        top_k=int(payload.get("top_k", 0)),
        top_p=float(payload.get("top_p", 1.0)),
        min_p=min_p,
        logit_bias=logit_bias,
        repetition_penalty=float(payload.get("repetition_penalty", 1.0)),
        frequency_penalty=float(payload.get("frequency_penalty", 0.0)),
        presence_penalty=float(payload.get("presence_penalty", 0.0)),
        max_tokens=int(payload["max_tokens"]),
    )


def _min_p(payload: dict[str, Any]) -> float:
    value = payload.get("min_p")
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidRequestError("min_p", f"'min_p' must be a number from 0 to 1, not {shown(value)}")
    return float(value)


def _field_of(message: str) -> str | None:
    """The field of the last problem in a refusal, as a JSON path without the leading slash."""
    paths = _PATH.findall(message)
    return paths[-1].removeprefix("/") or None if paths else None


def _hint(payload: Any, message: str) -> str:
    """One plain sentence that says what to change."""
    if not isinstance(payload, dict):
        return "Send a JSON object with either 'prompt' (a string) or 'messages' (an array)."
    if message.endswith(" matches"):
        return "Send either 'prompt' or 'messages', not both."
    if "prompt" not in payload and "messages" not in payload:
        if "requests" in payload or "request_id" in payload:
            return "Batches are not offered for this model; send one 'prompt' or one 'messages' at a time."
        return "Send either 'prompt' (a string) or 'messages' (an array of {role, content})."
    if "content', 'string' not in 'array'" in message:
        return 'This model reads text only: every content part must be {"type": "text", "text": "..."}.'
    if "Type mismatch" in message:
        return "Change the type of the value at the path named above, or leave the field out."
    if "Length of" in message:
        return "Shorten the text at the path named above, or send some if it is empty."
    if "must be" in message:
        return "Move the value at the path named above into its range, or leave the field out."
    return "Add the missing properties at the path named above."
