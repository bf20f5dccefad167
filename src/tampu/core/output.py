"""What the engine says about a request after a step, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tampu.core.errors import TampuError
from tampu.core.step import TokenLogprobs


class FinishReason(StrEnum):
    """Why a request ended. `tool_calls` is decided above the engine."""

    STOP = "stop"  # EOS, a stop token or a stop string
    LENGTH = "length"  # max_tokens or the context window
    TOOL_CALLS = "tool_calls"
    ABORT = "abort"  # aborted by the client
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """News of one request. Exactly one output of a request has a finish_reason, and it is the last one."""

    request_id: str
    new_token_ids: tuple[int, ...] = ()
    new_logprobs: tuple[TokenLogprobs, ...] = ()  # parallel to new_token_ids, or empty
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0  # prompt tokens taken from the prefix cache
    error: TampuError | None = None  # set exactly when finish_reason is ERROR


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )
