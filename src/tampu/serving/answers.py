"""A stream of events folded into whole answers, for clients that do not stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tampu.core.chat import ToolCall
from tampu.core.output import FinishReason, Usage
from tampu.serving.events import Event, Finished, TextDelta, TokenText, ToolCallDelta


@dataclass(frozen=True, slots=True)
class UnfinishedCall:
    """A call that was cut off after it had begun to be delivered. `text` is all that was written of it."""

    call_id: str
    name: str
    arguments_json: str  # as far as it goes
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished choice. `text` is exactly what a stream's text pieces join to."""

    index: int
    text: str
    finish_reason: FinishReason
    usage: Usage
    tool_calls: tuple[ToolCall, ...] = ()
    unfinished_calls: tuple[UnfinishedCall, ...] = ()
    logprobs: tuple[TokenText, ...] = ()
    stop_match: str | None = None
    functions_run: tuple[tuple[ToolCall, str], ...] = ()


@dataclass(slots=True)
class _Parts:
    """What has come of one choice."""

    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    unfinished_calls: list[UnfinishedCall] = field(default_factory=list)
    begun: ToolCallDelta | None = None
    arguments: list[str] = field(default_factory=list)
    logprobs: list[TokenText] = field(default_factory=list)

    def take_call(self, delta: ToolCallDelta) -> None:
        """One more delta of the calls."""
        if delta.name is not None:
            self.begun = delta
            self.arguments.clear()
        self.arguments.append(delta.arguments_json)
        if delta.call is not None:
            self.calls.append(delta.call)
        elif delta.unfinished and self.begun is not None:
            call_id, name = self.begun.call_id or "", self.begun.name or ""
            self.unfinished_calls.append(UnfinishedCall(call_id, name, "".join(self.arguments), delta.unfinished))


async def fold(events: AsyncIterator[Event]) -> list[Answer]:
    """All answers of a stream, by choice index."""
    parts: dict[int, _Parts] = {}
    answers: list[Answer] = []
    async for event in events:
        part = parts.setdefault(event.index, _Parts())
        match event:
            case TextDelta():
                part.texts.append(event.text)
                part.logprobs.extend(event.logprobs)
            case ToolCallDelta():
                part.take_call(event)
            case Finished():
                answers.append(
                    Answer(
                        index=event.index,
                        text="".join(part.texts),
                        finish_reason=event.finish_reason,
                        usage=event.usage,
                        tool_calls=tuple(part.calls),
                        unfinished_calls=tuple(part.unfinished_calls),
                        logprobs=tuple(part.logprobs),
                        stop_match=event.stop_match,
                        functions_run=event.functions_run,
                    )
                )
    return sorted(answers, key=lambda answer: answer.index)


def total_usage(answers: list[Answer]) -> Usage:
    """What all choices cost together; the prompt counts once."""
    return sum((answer.usage for answer in answers), Usage())
