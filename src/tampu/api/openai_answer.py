"""Answers in OpenAI's format: whole bodies, and the frames of a stream. Knows no request parameter's meaning.

The streams follow what every known client can read: a first chunk with the role, string content in each delta, usage on
the chunk that has the finish reason (the last one of several), no chunk without choices, `[DONE]`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tampu.core.chat import ToolCall
from tampu.core.output import FinishReason, Usage
from tampu.serving.answers import Answer
from tampu.serving.events import Finished, TextDelta, TokenText, ToolCallDelta, arguments_text


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What every body and chunk of one answer repeats."""

    answer_id: str
    created: int
    model: str


class AnswerIds:
    """Ids in the hosted service's style, `id-<milliseconds>`, each given once by this process."""

    def __init__(self) -> None:
        self._last_ms = 0

    def head(self, model: str) -> AnswerHead:
        """The head of a new answer."""
        self._last_ms = max(self._last_ms + 1, int(time.time() * 1000))
        return AnswerHead(f"id-{self._last_ms}", self._last_ms // 1000, model)


def usage_body(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def total_usage(answers: Iterable[Answer | Finished]) -> Usage:
    """All choices together."""
    return sum((answer.usage for answer in answers), Usage())


def call_body(call: ToolCall) -> dict[str, Any]:
    """A complete call as OpenAI clients read it: the arguments are text."""
    return _call_body(call.call_id, call.name, arguments_text(call))


def _call_body(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id or new_call_id(), "type": "function", "function": {"name": name, "arguments": arguments}}


def new_call_id() -> str:
    """An id for a call that came without one."""
    return f"chatcmpl-tool-{uuid.uuid4().hex}"


def finish_name(reason: FinishReason, *, uses_functions: bool) -> str:
    """The finish reason; calls have another name in the older spelling."""
    if reason is FinishReason.TOOL_CALLS and uses_functions:
        return "function_call"
    return reason.value


def chat_body(
    head: AnswerHead, answers: Sequence[Answer], *, has_logprobs: bool, uses_functions: bool
) -> dict[str, Any]:
    """A chat completion."""
    choices = []
    for answer in answers:
        choice: dict[str, Any] = {
            "index": answer.index,
            "message": _message(answer, uses_functions=uses_functions),
            "finish_reason": finish_name(answer.finish_reason, uses_functions=uses_functions),
        }
        if has_logprobs:
            choice["logprobs"] = chat_logprobs(answer.logprobs)
        choices.append(choice)
    return {
        "id": head.answer_id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": choices,
        "usage": usage_body(total_usage(answers)),
    }


def _message(answer: Answer, *, uses_functions: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    calls = [call_body(call) for call in answer.tool_calls]
    # What a stream has begun to deliver as a call is one here too, however far it came.
    calls += [_call_body(call.call_id, call.name, call.arguments_json) for call in answer.unfinished_calls]
    if calls:
        message["content"] = answer.text or None
        if uses_functions:
            message["function_call"] = calls[0]["function"]
        else:
            message["tool_calls"] = calls
    return message


def chat_logprobs(tokens: Iterable[TokenText]) -> dict[str, Any]:
    """`logprobs` of a chat choice."""
    return {"content": [_token_body(token) for token in tokens], "refusal": None}


def _token_body(token: TokenText) -> dict[str, Any]:
    top = [{"token": text, "logprob": logprob, "bytes": list(spelled)} for text, spelled, logprob in token.top]
    return {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": list(token.token_bytes),
        "top_logprobs": top,
    }


def completion_body(head: AnswerHead, answers: Sequence[Answer], *, has_logprobs: bool) -> dict[str, Any]:
    """A text completion."""
    choices = [
        {
            "index": answer.index,
            "text": answer.text,
            "logprobs": completion_logprobs(answer.logprobs, 0) if has_logprobs else None,
            "finish_reason": answer.finish_reason.value,
        }
        for answer in answers
    ]
    return {
        "id": head.answer_id,
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "choices": choices,
        "usage": usage_body(total_usage(answers)),
    }


def completion_logprobs(tokens: Iterable[TokenText], offset: int) -> dict[str, Any]:
    """`logprobs` of a text completion choice; `offset` is the number of characters before the first token."""
    body: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        body["tokens"].append(token.token)
        body["token_logprobs"].append(token.logprob)
        body["top_logprobs"].append({text: logprob for text, _, logprob in token.top})
        body["text_offset"].append(offset)
        offset += len(token.token)
    return body


class ChatFrames:
    """The frames of one chat stream. What does not change is built once, so that a text frame encodes one string."""

    def __init__(self, head: AnswerHead, *, has_logprobs: bool, has_usage: bool, uses_functions: bool) -> None:
        self._start = _chunk_start(head, "chat.completion.chunk")
        self._has_logprobs = has_logprobs
        self._has_usage = has_usage
        self._uses_functions = uses_functions
        self._text_starts: dict[int, bytes] = {}

    def role(self, index: int) -> bytes:
        """The first chunk of a choice."""
        return self._frame(index, {"role": "assistant", "content": ""})

    def text(self, event: TextDelta) -> bytes:
        """A piece of text."""
        start = self._text_starts.get(event.index)
        if start is None:
            start = self._start + b'{"index":%d,"delta":{"content":' % event.index
            self._text_starts[event.index] = start
        encoded = orjson.dumps(event.text)
        if not self._has_logprobs:
            return start + encoded + b'},"finish_reason":null}]}\n\n'
        logprobs = orjson.dumps(chat_logprobs(event.logprobs))
        return start + encoded + b'},"logprobs":' + logprobs + b',"finish_reason":null}]}\n\n'

    def tool_call(self, event: ToolCallDelta) -> bytes | None:
        """A piece of a call; None when it says nothing new."""
        if event.name is None and not event.arguments_json:
            return None
        function = {"arguments": event.arguments_json}
        if event.name is not None:
            function = {"name": event.name, **function}
        if self._uses_functions:
            return (
                self._frame(event.index, {"content": "", "function_call": function}) if event.call_index == 0 else None
            )
        call: dict[str, Any] = {"index": event.call_index, "function": function}
        if event.name is not None:
            call = {
                "index": event.call_index,
                "id": event.call_id or new_call_id(),
                "type": "function",
                "function": function,
            }
        return self._frame(event.index, {"content": "", "tool_calls": [call]})

    def finish(self, event: Finished, usage: Usage | None) -> bytes:
        """The last chunk of a choice; `usage` belongs on the very last one."""
        reason = finish_name(event.finish_reason, uses_functions=self._uses_functions)
        return self._frame(event.index, {"content": ""}, reason, usage if self._has_usage else None)

    def _frame(self, index: int, delta: dict[str, Any], reason: str | None = None, usage: Usage | None = None) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta}
        if self._has_logprobs:
            choice["logprobs"] = None
        choice["finish_reason"] = reason
        return _chunk(self._start, choice, usage)


class CompletionFrames:
    """The frames of one text completion stream."""

    def __init__(self, head: AnswerHead, *, has_logprobs: bool, has_usage: bool) -> None:
        self._start = _chunk_start(head, "text_completion")
        self._has_logprobs = has_logprobs
        self._has_usage = has_usage
        self._offsets: dict[int, int] = {}

    def text(self, event: TextDelta, index: int) -> bytes:
        """A piece of text of choice `index`."""
        start = self._start + b'{"index":%d,"text":' % index
        encoded = orjson.dumps(event.text)
        if not self._has_logprobs:
            return start + encoded + b',"logprobs":null,"finish_reason":null}]}\n\n'
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + sum(len(token.token) for token in event.logprobs)
        logprobs = orjson.dumps(completion_logprobs(event.logprobs, offset))
        return start + encoded + b',"logprobs":' + logprobs + b',"finish_reason":null}]}\n\n'

    def finish(self, event: Finished, index: int, usage: Usage | None) -> bytes:
        """The last chunk of choice `index`."""
        choice = {"index": index, "text": "", "logprobs": None, "finish_reason": event.finish_reason.value}
        return _chunk(self._start, choice, usage if self._has_usage else None)


def _chunk_start(head: AnswerHead, kind: str) -> bytes:
    """A frame up to its first choice."""
    fields = {"id": head.answer_id, "object": kind, "created": head.created, "model": head.model}
    return b"data: " + orjson.dumps(fields)[:-1] + b',"choices":['


def _chunk(start: bytes, choice: dict[str, Any], usage: Usage | None) -> bytes:
    end = b"]" if usage is None else b'],"usage":' + orjson.dumps(usage_body(usage))
    return start + orjson.dumps(choice) + end + b"}\n\n"
