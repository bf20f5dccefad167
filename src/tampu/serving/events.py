"""What happens to a generation, in order. A stream sends the events as they come; a plain answer folds them.

For each choice index: any number of TextDelta and ToolCallDelta, then exactly one Finished.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tampu.core.chat import ToolCall
from tampu.core.output import FinishReason, Usage


@dataclass(frozen=True, slots=True)
class TokenText:
    """One token with its log probability, for clients that asked for logprobs."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer's text; whole Unicode characters."""

    text: str
    index: int = 0  # choice
    logprobs: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """News of one tool call. The first delta of a call has id and name; `arguments_json` pieces join to valid JSON.

    The last delta of a call completes it: it has `call`, whose `arguments_json` is what the pieces join to. Only where
    a call was cut off after it had begun to be delivered, it has `unfinished` instead: all that was written of it.
    """

    call_index: int
    call_id: str | None = None
    name: str | None = None
    arguments_json: str = ""
    call: ToolCall | None = None
    unfinished: str = ""
    index: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a choice. `usage` counts this choice; prompt tokens are counted once, on choice 0."""

    finish_reason: FinishReason
    usage: Usage
    index: int = 0
    stop_match: str | None = None  # the stop string that ended it
    # Functions (embedded) that ran on the way, in order, with the JSON text of what each returned.
    functions_run: tuple[tuple[ToolCall, str], ...] = ()


Event = TextDelta | ToolCallDelta | Finished


def whole_call(call: ToolCall, call_index: int, index: int = 0) -> tuple[ToolCallDelta, ToolCallDelta]:
    """The deltas of a call that is known whole: who is called, and with what."""
    return (
        ToolCallDelta(call_index, call.call_id, call.name, index=index),
        ToolCallDelta(call_index, arguments_json=arguments_text(call), call=call, index=index),
    )


def arguments_text(call: ToolCall) -> str:
    """The arguments as clients get them: as the model wrote them, where that is known."""
    return call.arguments_json or json.dumps(call.arguments, ensure_ascii=False)
