"""Bodies of the Responses API to `GenerateRequest`s. Nothing is stored: a conversation comes whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tampu.api.config import ServerConfig
from tampu.api.conversation import content_text, parse_messages
from tampu.api.openai_chat import Caller, sampling_of
from tampu.api.openai_parameters import RESPONSES_PARAMETERS
from tampu.api.openai_tools import read_tools
from tampu.api.parameter_tables import read_parameters, required, shown
from tampu.api.wire_options import parse_response_format
from tampu.core.errors import InvalidRequestError
from tampu.serving.requests import GenerateRequest

_ECHOED = ("metadata", "text", "tools", "tool_choice")  # members that the answer repeats
_MAX_ECHO_DEPTH = 200  # the JSON writer's own limit is 254
_LOGPROBS = "message.output_text.logprobs"
_INCLUDES = (_LOGPROBS, "reasoning.encrypted_content")  # the second asks for what this model never has


@dataclass(frozen=True, slots=True)
class ResponsesCall:
    """What a body asks for. `echo` holds the members that the answer repeats."""

    request: GenerateRequest
    is_stream: bool
    rejects_if_busy: bool = False
    echo: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def parse_responses(body: Any, caller: Caller, config: ServerConfig) -> ResponsesCall:
    """A body of `POST /responses`.

    Raises:
        InvalidRequestError: naming the member at fault.
    """
    values, ignored = read_parameters(RESPONSES_PARAMETERS, body)
    for name in _ECHOED:
        _refuse_deep(values.get(name), name)
    model = required(values, "model")
    messages = _messages(required(values, "input"), values.get("instructions"))
    tools, choice = read_tools(values.get("tools", []), values.get("tool_choice"))
    max_tokens = values.get("max_output_tokens", config.default_max_tokens)
    sampling = sampling_of(values, max_tokens=max_tokens, num_logprobs=_num_logprobs(values))
    text = values.get("text", {})
    if text.get("verbosity") not in (None, "medium"):
        raise InvalidRequestError("text/verbosity", "'text/verbosity' is not supported: ask for it in the input")
    if values.get("stream_options", {}).get("include_obfuscation", False):
        raise InvalidRequestError("stream_options", "'stream_options/include_obfuscation' is not supported")
    request = GenerateRequest(
        model=model,
        sampling=sampling,
        messages=parse_messages(messages, "input"),
        seed=values.get("seed"),
        ignore_eos=values.get("ignore_eos", False),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=values.get("parallel_tool_calls", True),
        response_format=parse_response_format(text.get("format"), "text/format", member="schema"),
        lora=values.get("lora"),
        tenant=caller.tenant,
        request_id=caller.request_id,
    )
    return ResponsesCall(
        request=request,
        is_stream=values.get("stream", False),
        rejects_if_busy=values.get("options", {}).get("rejectIfBusy", False),
        echo={
            "instructions": values.get("instructions"),
            "max_output_tokens": values.get("max_output_tokens"),
            "metadata": values.get("metadata", {}),
            "parallel_tool_calls": request.parallel_tool_calls,
            "temperature": sampling.temperature,
            "text": {"format": text.get("format") or {"type": "text"}},
            "tool_choice": values.get("tool_choice", "auto"),
            "tools": values.get("tools", []),
            "top_p": sampling.top_p,
            "user": values.get("user"),
        },
        ignored=ignored,
    )


def _refuse_deep(value: Any, field: str) -> None:
    """Refuse what could not be written into the answer again."""
    level = [value]
    for _ in range(_MAX_ECHO_DEPTH):
        level = [
            member
            for item in level
            if isinstance(item, dict | list)
            for member in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise InvalidRequestError(
        field, f"'{field}' is nested more than {_MAX_ECHO_DEPTH} levels deep", hint="Send it with fewer levels."
    )


def _num_logprobs(values: Mapping[str, Any]) -> int | None:
    includes = values.get("include", [])
    for index, name in enumerate(includes):
        if name not in _INCLUDES:
            raise InvalidRequestError(
                f"include/{index}", f"'include/{index}' must be {_LOGPROBS!r}: {name!r} is not made here"
            )
    if _LOGPROBS in includes or "top_logprobs" in values:
        return int(values.get("top_logprobs", 0))
    return None


def _messages(value: Any, instructions: str | None) -> list[dict[str, Any]]:
    """The input as chat messages, in the shape that `conversation` reads."""
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(value, str):
        return [*messages, {"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise InvalidRequestError("input", f"'input' must be a string or an array of items, not {shown(value)}")
    for index, item in enumerate(value):
        _add_item(messages, item, f"input/{index}")
    return messages


def _add_item(messages: list[dict[str, Any]], item: Any, where: str) -> None:
    """Append one input item; calls that follow each other are one turn of the assistant."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    match kind:
        case "message" if isinstance(item.get("role"), str):
            text = content_text(item.get("content"), f"{where}/content")
            messages.append({"role": item["role"], "content": text})
        case "function_call" if isinstance(item.get("name"), str):
            call = {"id": item.get("call_id"), "name": item["name"], "arguments": item.get("arguments")}
            if not messages or messages[-1]["role"] != "assistant" or "tool_calls" not in messages[-1]:
                messages.append({"role": "assistant", "content": "", "tool_calls": []})
            messages[-1]["tool_calls"].append(call)
        case "function_call_output":
            output = item.get("output")
            text = json.dumps(output) if isinstance(output, dict) else content_text(output, f"{where}/output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        case _:
            shown = json.dumps(kind)[:60] if isinstance(item, dict) else type(item).__name__
            raise InvalidRequestError(
                where,
                f"'{where}' is an item of type {shown}, or incomplete",
                hint="Send messages with a role, function calls with a name, and their outputs.",
            )
