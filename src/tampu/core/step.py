"""What the scheduler asks of a runner for one step, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tampu.core.request import Request, TokenMask


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """A run of consecutive tokens of one request to be computed in this step.

    `token_ids` and `block_table` are the scheduler's own growing sequences, lent for the duration of the step: a
    runner reads them and keeps no reference. The tokens to compute are
    `token_ids[num_computed_tokens : num_computed_tokens + num_scheduled_tokens]`, at those positions; their KV goes to
    block `block_table[position // block_size]`, row `position % block_size`. When `is_sampled`, the run ends at the
    last known token and the runner samples the token that follows it.

    `next_mask` (only with `is_sampled`) gives the tokens that may be sampled, None for all: a runner calls it once,
    late in the step, on whatever thread suits it. It may take its time and never raises.
    """

    request: Request
    token_ids: Sequence[int]  # prompt then output so far
    num_computed_tokens: int
    num_scheduled_tokens: int
    block_table: Sequence[int]
    is_sampled: bool
    next_mask: Callable[[], TokenMask | None] | None = None


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step. `finished_request_ids` lets a runner drop what it cached about them since the last step."""

    scheduled: tuple[ScheduledRequest, ...]
    finished_request_ids: tuple[str, ...] = ()

    @property
    def num_scheduled_tokens(self) -> int:
        """Tokens computed in this step, over all requests."""
        return sum(s.num_scheduled_tokens for s in self.scheduled)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities of one sampled position, from the unmodified logits."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), most likely first


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token sampled for one request."""

    request_id: str
    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """One sampled token for each scheduled request with `is_sampled`, in the same order."""

    sampled: tuple[SampledToken, ...]
