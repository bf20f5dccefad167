"""Events to the Responses API: the server-sent events in their order, and the response object they build up.

A plain answer is the same object without the events, so that both tell the same.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import orjson

from tampu.api.errors import ApiError, openai_error, to_api_error
from tampu.api.openai_answer import AnswerHead, chat_logprobs
from tampu.core.output import FinishReason, Usage
from tampu.serving.events import Event, Finished, TextDelta, TokenText, ToolCallDelta


class ResponseWriter:
    """One response: each event goes in, frames come out, and `body` is the object so far."""

    def __init__(self, head: AnswerHead, echo: Mapping[str, Any]) -> None:
        self._num_frames = 0
        self._output: list[dict[str, Any]] = []
        self._text: list[str] = []
        self._logprobs: list[TokenText] = []
        self._arguments: list[str] = []
        self._call_index: int | None = None  # of the call that is being written
        self._is_text_open = False
        self.body: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": head.created,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": head.model,
            "output": [],
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **echo,
        }

    def begin(self) -> bytes:
        """The first two events."""
        return self._lifecycle("response.created") + self._lifecycle("response.in_progress")

    def take(self, event: Event) -> bytes:
        """The frames of one event."""
        match event:
            case TextDelta():
                return self._take_text(event)
            case ToolCallDelta():
                return self._take_call(event)
            case Finished():
                return self._finish(event)

    def fail(self, error: ApiError, request_id: str, *, is_strict: bool) -> bytes:
        """The last event of a response that broke."""
        told = openai_error(error, request_id, is_strict=is_strict)
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.body.update(status="failed", error={"code": code, "message": told["message"]})
        return self._lifecycle("response.failed")

    def _take_text(self, event: TextDelta) -> bytes:
        frames = b""
        if not self._is_text_open:
            frames = self._close_call() + self._open_text()
        self._text.append(event.text)
        self._logprobs.extend(event.logprobs)
        item = self._output[-1]
        fields = {
            **self._place(item),
            "content_index": 0,
            "delta": event.text,
            "logprobs": _token_bodies(event.logprobs),
        }
        return frames + self._frame("response.output_text.delta", fields)

    def _take_call(self, event: ToolCallDelta) -> bytes:
        frames = b""
        if event.name is not None:
            frames = self._close_text() + self._close_call()
            self._call_index = event.call_index
            frames += self._open_item(
                {
                    "id": f"fc_{uuid.uuid4().hex}",
                    "type": "function_call",
                    "status": "in_progress",
                    "call_id": event.call_id or f"call_{uuid.uuid4().hex}",
                    "name": event.name,
                    "arguments": "",
                }
            )
        if event.arguments_json:
            self._arguments.append(event.arguments_json)
            fields = {**self._place(self._output[-1]), "delta": event.arguments_json}
            frames += self._frame("response.function_call_arguments.delta", fields)
        if event.call is not None or event.unfinished:
            frames += self._close_call(status="incomplete" if event.unfinished else "completed")
        return frames

    def _finish(self, event: Finished) -> bytes:
        frames = self._close_call()
        if not self._output:
            frames += self._open_text()
        is_cut = event.finish_reason is FinishReason.LENGTH
        frames += self._close_text(status="incomplete" if is_cut else "completed")
        self.body.update(status="incomplete" if is_cut else "completed", usage=_usage_body(event.usage))
        if is_cut:
            self.body["incomplete_details"] = {"reason": "max_output_tokens"}
        return frames + self._lifecycle("response.incomplete" if is_cut else "response.completed")

    def _open_text(self) -> bytes:
        self._is_text_open = True
        message = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "status": "in_progress"}
        frames = self._open_item({**message, "content": []})
        fields = {**self._place(self._output[-1]), "content_index": 0, "part": _text_part("", [])}
        return frames + self._frame("response.content_part.added", fields)

    def _close_text(self, status: str = "completed") -> bytes:
        if not self._is_text_open:
            return b""
        self._is_text_open = False
        text = "".join(self._text)
        logprobs = _token_bodies(self._logprobs)
        self._text.clear()
        self._logprobs.clear()
        item = self._output[-1]
        part = _text_part(text, logprobs)
        place = {**self._place(item), "content_index": 0}
        item.update(status=status, content=[part])
        return (
            self._frame("response.output_text.done", {**place, "text": text, "logprobs": logprobs})
            + self._frame("response.content_part.done", {**place, "part": part})
            + self._close_item(item)
        )

    def _close_call(self, status: str = "completed") -> bytes:
        if self._call_index is None:
            return b""
        self._call_index = None
        item = self._output[-1]
        item.update(status=status, arguments="".join(self._arguments))
        self._arguments.clear()
        fields = {**self._place(item), "name": item["name"], "arguments": item["arguments"]}
        return self._frame("response.function_call_arguments.done", fields) + self._close_item(item)

    def _open_item(self, item: dict[str, Any]) -> bytes:
        self._output.append(item)
        return self._frame("response.output_item.added", {"output_index": len(self._output) - 1, "item": item})

    def _close_item(self, item: dict[str, Any]) -> bytes:
        self.body["output"].append(item)
        return self._frame("response.output_item.done", {"output_index": len(self._output) - 1, "item": item})

    def _place(self, item: Mapping[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self._output) - 1}

    def _lifecycle(self, kind: str) -> bytes:
        return self._frame(kind, {"response": self.body})

    def _frame(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        event = {"type": kind, "sequence_number": self._num_frames, **fields}
        self._num_frames += 1
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


async def response_stream(
    events: AsyncGenerator[Event, None], writer: ResponseWriter, request_id: str, *, is_strict: bool
) -> AsyncGenerator[bytes, None]:
    """The frames of a whole response. This protocol has no `[DONE]`: its last event says how it ended."""
    async with aclosing(events):
        yield writer.begin()
        try:
            async for event in events:
                yield writer.take(event)
        except Exception as error:
            yield writer.fail(to_api_error(error), request_id, is_strict=is_strict)


async def response_body(events: AsyncGenerator[Event, None], writer: ResponseWriter) -> dict[str, Any]:
    """The finished response object."""
    async with aclosing(events):
        async for event in events:
            writer.take(event)
    return writer.body


def _text_part(text: str, logprobs: list[Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _token_bodies(tokens: list[TokenText] | tuple[TokenText, ...]) -> list[Any]:
    bodies: list[Any] = chat_logprobs(tokens)["content"]
    return bodies


def _usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
