"""The public fake: a runner that says what it is told to, for tests of what lies above runners and for mock servers.

Same five methods as the real ones, no weights, no arithmetic. What it returns for a position depends on the request
and the position alone, so chunking, batching and preemption change nothing, as with the real runners.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from tampu.core.errors import AdapterError
from tampu.core.request import Request, TokenMask
from tampu.core.step import SampledToken, ScheduledRequest, SchedulerOutput, StepOutput, TokenLogprobs

Reply = Callable[[Request], Sequence[int]]


class ScriptedRunner:
    """Replies with queued token ids, or with what `reply` makes of a request.

    A request takes its reply when it is first sampled: the oldest queued one, else `reply(request)`, else nothing.
    After the last token of its reply it gets its first stop token, or `filler_token_id` when it has none. A token that
    the request's mask forbids is replaced by its stop token when allowed, else by the lowest id that is, else by -1.
    """

    def __init__(
        self,
        reply: Reply | None = None,
        *,
        num_blocks: int = 1024,
        filler_token_id: int = 0,
        step_delay_s: float = 0.0,
    ) -> None:
        # What was asked for lately, most recent step last: (request id, number of tokens) of each scheduled request.
        self.step_log: deque[tuple[tuple[str, int], ...]] = deque(maxlen=1000)
        self.is_loaded = False
        self.is_closed = False
        self.step_delay_s = step_delay_s
        self._reply = reply
        self._num_blocks = num_blocks
        self._filler_token_id = filler_token_id
        self._queue: deque[Sequence[int]] = deque()
        self._replies: dict[str, Sequence[int]] = {}
        self._adapters: dict[str, str] = {}
        self._failure: Exception | None = None

    def queue_reply(self, token_ids: Sequence[int]) -> None:
        """The next request without a reply says this."""
        self._queue.append(token_ids)

    def fail_next_step(self, error: Exception) -> None:
        """The next `execute` raises, which ends the engine."""
        self._failure = error

    # -- ModelRunner --------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Nothing to read."""
        self.is_loaded = True

    def num_blocks(self) -> int:
        """As many as the constructor was told."""
        assert self.is_loaded
        return self._num_blocks

    def execute(self, scheduler_output: SchedulerOutput) -> StepOutput:
        """The next token of each reply."""
        assert self.is_loaded
        assert not self.is_closed
        if self._failure is not None:
            raise self._failure
        if self.step_delay_s:
            time.sleep(self.step_delay_s)
        self.step_log.append(tuple((s.request.request_id, s.num_scheduled_tokens) for s in scheduler_output.scheduled))
        for request_id in scheduler_output.finished_request_ids:
            self._replies.pop(request_id, None)
        return StepOutput(tuple(self._sample(s) for s in scheduler_output.scheduled if s.is_sampled))

    def add_adapter(self, lora_id: str, path: str) -> None:
        """Remembers the id; refuses an empty path, so that callers can test their error path."""
        if not path:
            raise AdapterError(f"Adapter {lora_id!r} has no path.")
        self._adapters[lora_id] = path

    def close(self) -> None:
        """Forget everything. Idempotent."""
        self.is_closed = True
        self._replies.clear()

    # -----------------------------------------------------------------------------------------------------------------

    def _sample(self, scheduled: ScheduledRequest) -> SampledToken:
        request = scheduled.request
        reply = self._replies.get(request.request_id)
        if reply is None:
            reply = self._new_reply(request)
            self._replies[request.request_id] = reply
        position = len(scheduled.token_ids) - len(request.prompt_token_ids)
        stop_token_ids = request.sampling_params.stop_token_ids
        end = stop_token_ids[0] if stop_token_ids else self._filler_token_id
        token_id = reply[position] if position < len(reply) else end
        mask = None if scheduled.next_mask is None else scheduled.next_mask()
        if mask is not None:
            token_id = _allowed(mask, (token_id, *stop_token_ids))
        return SampledToken(request.request_id, token_id, _logprobs(request, token_id))

    def _new_reply(self, request: Request) -> Sequence[int]:
        if self._queue:
            return self._queue.popleft()
        return self._reply(request) if self._reply is not None else ()


def _allowed(mask: TokenMask, wishes: Sequence[int]) -> int:
    """The first wish that the mask allows, else the lowest allowed id, else -1."""
    for token_id in wishes:
        if 0 <= token_id < len(mask) * 8 and mask[token_id >> 3] >> (token_id & 7) & 1:
            return token_id
    for index, byte in enumerate(mask):
        if byte:
            return index * 8 + (byte & -byte).bit_length() - 1
    return -1


def _logprobs(request: Request, token_id: int) -> TokenLogprobs | None:
    """Certainty: the script left no choice."""
    num_logprobs = request.sampling_params.num_logprobs
    if num_logprobs is None:
        return None
    return TokenLogprobs(0.0, ((token_id, 0.0),) if num_logprobs else ())
