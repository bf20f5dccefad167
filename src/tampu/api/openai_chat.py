"""Chat and text completion bodies to `GenerateRequest`s. Knows the meaning of the parameters, nothing of answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tampu.api.config import ServerConfig
from tampu.api.conversation import parse_messages
from tampu.api.openai_parameters import CHAT_PARAMETERS, COMPLETION_PARAMETERS
from tampu.api.openai_tools import read_tools
from tampu.api.parameter_tables import read_parameters, required, shown
from tampu.api.wire_options import parse_json_mode, parse_stop
from tampu.core.chat import ToolSpec
from tampu.core.errors import InvalidRequestError
from tampu.core.sampling_params import SamplingParams
from tampu.serving.requests import GenerateRequest, ToolChoice

MAX_PROMPTS = 128  # in one completion request
_MAX_TOKEN_ID = 2**31 - 1
_DEFAULT_TEMPERATURE = 0.6
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request inherits from its connection."""

    request_id: str
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """What a body asks for. Chat has one request; a completion has one for each prompt."""

    requests: tuple[GenerateRequest, ...]
    model: str
    is_stream: bool
    has_stream_usage: bool = True
    uses_functions: bool = False  # the older spelling of tools: calls are answered in it too
    rejects_if_busy: bool = False
    ignored: tuple[str, ...] = ()


def parse_chat(body: Any, caller: Caller, config: ServerConfig) -> GenerationCall:
    """A chat completion body.

    Raises:
        InvalidRequestError: naming the member at fault.
    """
    values, ignored = read_parameters(CHAT_PARAMETERS, body)
    model = required(values, "model")
    messages = parse_messages(_checked_messages(required(values, "messages")))
    tools, choice = _tools(values)
    sampling = sampling_of(values, max_tokens=_max_tokens(values, config), num_logprobs=_chat_logprobs(values))
    request = GenerateRequest(
        model=model,
        sampling=sampling,
        messages=messages,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=values.get("parallel_tool_calls", True),
        **_common(values, caller),
    )
    return _call((request,), values, ignored, uses_functions="functions" in values)


def _checked_messages(messages: list[Any]) -> list[Any]:
    """The messages, whose roles are OpenAI's and whose content is there. The run endpoint takes any role, as hosted."""
    for index, item in enumerate(messages):
        role = item.get("role") if isinstance(item, dict) else None
        if isinstance(role, str) and role not in _ROLES:
            field = f"messages/{index}/role"
            raise InvalidRequestError(field, f"'{field}' must be one of {', '.join(_ROLES)}, not {shown(role)}")
        if isinstance(role, str) and role != "assistant" and "content" not in item:
            field = f"messages/{index}/content"
            raise InvalidRequestError(field, f"'{field}' is missing", hint='Send {"role", "content"}.')
    return messages


def parse_completion(body: Any, caller: Caller, config: ServerConfig) -> GenerationCall:
    """A text completion body.

    Raises:
        InvalidRequestError: naming the member at fault.
    """
    values, ignored = read_parameters(COMPLETION_PARAMETERS, body)
    model = required(values, "model")
    prompts = _prompts(required(values, "prompt"))
    if values.get("best_of", values.get("n", 1)) != values.get("n", 1):
        raise InvalidRequestError("best_of", "'best_of' must be equal to 'n'", hint="Choose among n answers yourself.")
    echo = values.get("echo", False)
    if echo and "logprobs" in values:
        raise InvalidRequestError(
            "echo", "'echo' is not supported together with 'logprobs': the prompt has none", hint="Send one of them."
        )
    sampling = sampling_of(values, max_tokens=_max_tokens(values, config), num_logprobs=values.get("logprobs"))
    common = _common(values, caller)
    requests = tuple(
        GenerateRequest(
            model=model,
            sampling=sampling,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=None if isinstance(prompt, str) else prompt,
            is_raw=True,
            echo=echo,
            **common,
        )
        for prompt in prompts
    )
    return _call(requests, values, ignored)


def _call(
    requests: tuple[GenerateRequest, ...],
    values: Mapping[str, Any],
    ignored: tuple[str, ...],
    *,
    uses_functions: bool = False,
) -> GenerationCall:
    stream_options = values.get("stream_options", {})
    if stream_options.get("include_obfuscation", False):
        raise InvalidRequestError(
            "stream_options/include_obfuscation", "'stream_options/include_obfuscation' is not supported"
        )
    return GenerationCall(
        requests=requests,
        model=requests[0].model,
        is_stream=values.get("stream", False),
        has_stream_usage=stream_options.get("include_usage", True),
        uses_functions=uses_functions,
        rejects_if_busy=values.get("options", {}).get("rejectIfBusy", False),
        ignored=ignored,
    )


def _common(values: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """The members of a GenerateRequest that chat and completions spell alike."""
    return {
        "seed": values.get("seed"),
        "stop": parse_stop(values.get("stop")),
        "n": values.get("n", 1),
        "ignore_eos": values.get("ignore_eos", False),
        "response_format": parse_json_mode(values.get("response_format"), values.get("guided_json")),
        "lora": values.get("lora"),
        "tenant": caller.tenant,
        "request_id": caller.request_id,
    }


def _max_tokens(values: Mapping[str, Any], config: ServerConfig) -> int:
    newer: int | None = values.get("max_completion_tokens")
    return values.get("max_tokens", config.default_max_tokens) if newer is None else newer


def sampling_of(values: Mapping[str, Any], *, max_tokens: int, num_logprobs: int | None) -> SamplingParams:
    """The sampling parameters that all routes spell alike."""
    return SamplingParams(
        temperature=float(values.get("temperature", _DEFAULT_TEMPERATURE)),
        top_k=max(values.get("top_k", 0), 0),
        top_p=float(values.get("top_p", 1.0)),
        min_p=float(values.get("min_p", 0.0)),
        repetition_penalty=float(values.get("repetition_penalty", 1.0)),
        frequency_penalty=float(values.get("frequency_penalty", 0.0)),
        presence_penalty=float(values.get("presence_penalty", 0.0)),
        logit_bias=_logit_bias(values.get("logit_bias", {})),
        max_tokens=max_tokens,
        num_logprobs=num_logprobs,
    )


def _chat_logprobs(values: Mapping[str, Any]) -> int | None:
    if values.get("logprobs", False):
        return int(values.get("top_logprobs", 0))
    if values.get("top_logprobs", 0):
        raise InvalidRequestError("top_logprobs", "'top_logprobs' needs 'logprobs': true")
    return None


def _logit_bias(biases: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    pairs: dict[int, float] = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdigit()) or len(key) > 10 or int(key) > _MAX_TOKEN_ID:
            raise InvalidRequestError(f"logit_bias/{key[:40]}", f"'logit_bias' must map token ids, not {key[:40]!r}")
        pairs[int(key)] = float(bias)
    return tuple(sorted(pairs.items()))


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """One or more prompts, as text or token ids."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            prompts: tuple[str | tuple[int, ...], ...] = tuple(value)
        elif all(_is_token_id(item) for item in value):
            prompts = (tuple(value),)
        elif all(isinstance(item, list) and item and all(map(_is_token_id, item)) for item in value):
            prompts = tuple(tuple(item) for item in value)
        else:
            prompts = ()
        if len(prompts) > MAX_PROMPTS:
            raise InvalidRequestError("prompt", f"'prompt' must hold at most {MAX_PROMPTS} prompts, not {len(prompts)}")
        if prompts:
            return prompts
    raise InvalidRequestError(
        "prompt", "'prompt' must be a string, an array of strings, an array of token ids or an array of those"
    )


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKEN_ID


def _tools(values: Mapping[str, Any]) -> tuple[tuple[ToolSpec, ...], ToolChoice]:
    """The tools offered and how they may be used, from the newer or the older members."""
    if "functions" in values or "function_call" in values:
        for newer in ("tools", "tool_choice"):
            if newer in values:
                raise InvalidRequestError(newer, f"'{newer}' cannot be sent together with its older form")
        older = {"tools_field": "functions", "choice_field": "function_call"}
        return read_tools(values.get("functions", []), values.get("function_call"), **older)
    return read_tools(values.get("tools", []), values.get("tool_choice"))
