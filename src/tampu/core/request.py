"""One generation request as the engine sees it: token ids in, no text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from tampu.core.sampling_params import SamplingParams

# Bit i (least significant bit of byte 0 first) set = token i allowed; tokens beyond its end are not.
TokenMask = bytes | bytearray


class TokenConstraint(Protocol):
    """Restricts the next token of one request. Stateful, owned by one request, called by one thread at a time.

    `accept` is called on the engine's thread, `next_mask` during a step on a thread of the runner's.
    It outlives preemption: `accept` is called exactly once for each output token, in order, and never again when
    tokens are recomputed.
    """

    def next_mask(self) -> TokenMask | None:
        """What may come next, None = every token. Valid until the next call; not to be changed."""

    def accept(self, token_id: int) -> None:
        """Advance by the token that was just sampled."""


@dataclass(frozen=True, slots=True)
class Request:
    """A validated request. `n > 1` becomes n of these in `serving`."""

    request_id: str
    prompt_token_ids: tuple[int, ...]  # at least one
    sampling_params: SamplingParams
    seed: int  # 0 <= seed < 2**64; drawn by serving when the client gave none
    lora_id: str | None = None
    tenant: str = ""  # prefix-cache namespace: KV is never shared between tenants
    constraint: TokenConstraint | None = field(default=None, compare=False)
