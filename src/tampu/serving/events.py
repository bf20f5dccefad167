"""What happens to a generation, in order. A stream sends the events as they come; a plain answer folds them.

For each choice index: any number of TextDelta and ToolCallDelta, then exactly one Finished.
"""

from __future__ import annotations

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

    `call` is set on the delta that completes the call.
    """

    call_index: int
    call_id: str | None = None
    name: str | None = None
    arguments_json: str = ""
    call: ToolCall | None = None
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
