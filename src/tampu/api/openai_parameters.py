"""The body parameters of the OpenAI routes, one table for each route: what is checked, documented and refused.

What the values mean is decided by the modules of the routes, not here.
"""

from __future__ import annotations

from typing import Any

from tampu.api.parameter_tables import Parameter, accepted, refused

_INT64 = 2**63
MAX_NUM_CHOICES = 16

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
    Parameter("n", _integer(1, MAX_NUM_CHOICES), "Number of answers."),
    Parameter(
        "ignore_eos", FLAG, "Go on after the model's end mark, up to max_tokens; no effect beside tools and JSON mode."
    ),
    Parameter("guided_json", OBJECT, "A JSON schema that the answer must meet; not with a `response_format`."),
    Parameter("lora", TEXT, "Id or name of a loaded adapter. None can be loaded yet: every value is error 3030."),
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
    Parameter("best_of", _integer(1, MAX_NUM_CHOICES), "Only equal to n: every answer is returned."),
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
