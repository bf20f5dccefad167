"""Progress of one request inside the scheduler: what is known, what is computed, which blocks it holds."""

from __future__ import annotations

from array import array

from tampu.core.request import Request, TokenMask
from tampu.kvcache.prefix_cache import BlockKeys


class RequestState:
    """Mutable, owned by the scheduler. `token_ids` and `block_table` are lent to the runner for each step."""

    __slots__ = (
        "arrival",
        "block_keys",
        "block_table",
        "constraint_error",
        "is_running",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_published_blocks",
        "request",
        "stop_token_ids",
        "token_ids",
    )

    def __init__(self, request: Request, arrival: int, block_keys: BlockKeys) -> None:
        self.request = request
        self.arrival = arrival  # position in the order of arrival: lower goes first, for ever
        self.token_ids = list(request.prompt_token_ids)  # prompt, then output
        self.stop_token_ids = frozenset(request.sampling_params.stop_token_ids)
        self.block_table = array("i")  # covers at least all computed tokens
        self.block_keys = block_keys
        self.num_computed_tokens = 0  # tokens whose KV is written
        self.num_published_blocks = 0  # leading blocks that were offered to the prefix cache
        self.num_cached_tokens = 0  # prompt tokens taken from the prefix cache before the first preemption
        self.num_preemptions = 0
        self.is_running = False
        self.constraint_error: Exception | None = None  # what the constraint raised in this step

    def next_mask(self) -> TokenMask | None:
        """For the runner: what the constraint allows next; nothing, if it raises."""
        constraint = self.request.constraint
        if constraint is None:
            return None
        try:
            return constraint.next_mask()
        except Exception as error:
            self.constraint_error = error
            return b""

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled so far."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def num_remaining_tokens(self) -> int:
        """Known tokens whose KV is not written; 1 while decoding."""
        return len(self.token_ids) - self.num_computed_tokens
