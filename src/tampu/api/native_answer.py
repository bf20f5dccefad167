"""Events and answers in the run endpoint's own format: the `result` object and the native stream's frames."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator
from typing import Any

import orjson

from tampu.api.config import ServerConfig
from tampu.api.errors import ApiError, to_api_error
from tampu.api.replies import DONE_FRAME, data_frame
from tampu.core.chat import ToolCall
from tampu.core.errors import TampuError
from tampu.core.output import FinishReason, Usage
from tampu.serving.answers import Answer
from tampu.serving.events import Event, Finished, TextDelta, ToolCallDelta
from tampu.serving.requests import GenerateRequest

_LOG = logging.getLogger("tampu.api")
# What the hosted service charges for this model, in neurons (the row `...-fp8-fast` of its price list).
_NEURONS_PER_PROMPT_TOKEN = 4119 / 1e6
_NEURONS_PER_COMPLETION_TOKEN = 34868 / 1e6
_PADDING = "abcdefghijklmnoprstuvxyz1234567890" * 2


def neurons(usage: Usage) -> float:
    """What the hosted service would charge; here it only sizes a bill that nobody sends."""
    cost = usage.prompt_tokens * _NEURONS_PER_PROMPT_TOKEN + usage.completion_tokens * _NEURONS_PER_COMPLETION_TOKEN
    return round(cost, 4)


def usage_body(usage: Usage) -> dict[str, Any]:
    """The `usage` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "neurons": neurons(usage),
    }


def flat_call(call: ToolCall) -> dict[str, Any]:
    """A call as native clients read it: flat, the arguments an object."""
    return {"name": call.name, "arguments": call.arguments}


def result_body(answer: Answer, request: GenerateRequest, config: ServerConfig) -> dict[str, Any]:
    """The `result` of a plain answer.

    Raises:
        ApiError: 5024 when JSON mode, 8006 when a demanded call was cut off before it was complete.
    """
    response: Any
    is_json_mode = request.response_format is not None
    is_call_demanded = request.tool_choice.mode in ("required", "named")
    has_called = bool(answer.tool_calls or answer.functions_run)
    if is_call_demanded and not has_called and answer.finish_reason is FinishReason.LENGTH:
        raise ApiError(
            8006,
            f"the demanded tool call was cut off after {answer.usage.completion_tokens} tokens",
            hint="Raise max_tokens.",
            param="max_tokens",
        )
    calls = [flat_call(call) for call in answer.tool_calls]
    response = answer.text + "".join(call.text for call in answer.unfinished_calls)
    if is_json_mode and not calls:
        response = parsed_json(answer, request)
    elif calls and not answer.text and config.has_null_response_with_tool_calls:
        response = None
    body: dict[str, Any] = {"response": response}
    if request.tools or request.functions or calls:
        body["tool_calls"] = calls or [flat_call(call) for call, _ in answer.functions_run]
    body["usage"] = usage_body(answer.usage)
    body["finish_reason"] = answer.finish_reason.value
    return body


def parsed_json(answer: Answer, request: GenerateRequest) -> Any:
    """The JSON value of an answer in JSON mode."""
    try:
        return orjson.loads(answer.text)
    except orjson.JSONDecodeError:
        hint = (  # not the usage: that counts all rounds of functions, and the limit holds for each
            f"The stop string {answer.stop_match!r} ended it before the JSON was complete: leave it out of 'stop'."
            if answer.stop_match
            else f"The answer was cut off after {request.sampling.max_tokens} tokens: raise max_tokens."
            if answer.finish_reason is FinishReason.LENGTH
            else "The answer is not complete JSON."
        )
        raise ApiError(5024, hint=hint, param="response_format") from None


async def stream_frames(
    events: AsyncGenerator[Event, None], *, request_id: str, config: ServerConfig
) -> AsyncGenerator[bytes, None]:
    """The native stream: text frames, one frame per complete tool call, one usage frame, `[DONE]`.

    Every frame has a string `response`; no text frame has `tool_calls`: clients depend on both. The usage frame lists
    the functions that ran here, when nothing is left for the client to call: as a plain answer does.
    """
    num_calls = 0
    try:
        async for event in events:
            match event:
                case TextDelta(text=text):
                    if text:
                        yield _text_frame(text, is_padded=config.is_stream_padded)
                case ToolCallDelta(call=ToolCall() as call):
                    yield data_frame({"response": "", "tool_calls": [{"index": num_calls, **flat_call(call)}]})
                    num_calls += 1
                case ToolCallDelta(unfinished=text):
                    if text:  # a call is an object here, and this never became one
                        yield _text_frame(text, is_padded=config.is_stream_padded)
                case Finished():
                    yield data_frame(_last_frame(event, () if num_calls else event.functions_run))
    except Exception as error:
        if not isinstance(error, TampuError):
            _LOG.exception("the stream of request %s failed", request_id)
        yield error_frame(to_api_error(error), request_id, is_strict=config.is_strict)
    finally:
        await events.aclose()
    yield DONE_FRAME


def _last_frame(event: Finished, functions_run: tuple[tuple[ToolCall, str], ...]) -> dict[str, Any]:
    frame: dict[str, Any] = {"response": ""}
    if functions_run:
        frame["tool_calls"] = [flat_call(call) for call, _ in functions_run]
    return {**frame, "usage": usage_body(event.usage), "finish_reason": event.finish_reason.value}


def error_frame(error: ApiError, request_id: str, *, is_strict: bool) -> bytes:
    """What a stream says when it breaks after its headers are gone. The finish reason keeps clients from reading it
    as a complete answer."""
    message = error.message(request_id, is_strict=is_strict)
    return data_frame(
        {"response": "", "error": {"code": error.code, "message": message}, "finish_reason": FinishReason.ERROR.value}
    )


def _text_frame(text: str, *, is_padded: bool) -> bytes:
    encoded = orjson.dumps(text)
    if not is_padded:
        return b'data: {"response":' + encoded + b"}\n\n"
    padding = _PADDING[: 5 + secrets.randbelow(len(_PADDING) - 5)].encode()
    return b'data: {"response":' + encoded + b',"p":"' + padding + b'"}\n\n'
