"""Continuous batching with chunked prefill under one token budget.

There is no prefill phase and no decode phase, only `num_computed_tokens` catching up with the known tokens. Each step:

1. Every request that lacks one token gets it, oldest first, so prefills never stop the others' output. When no block
   is left, the youngest running request is preempted: its blocks are freed and it goes back to the front of the queue.
   The oldest is therefore never preempted for another's sake and always progresses, which rules out livelock.
2. What is left of the budget goes to requests that lack more, in order of arrival. One that cannot be done within one
   whole step is long: the oldest long one is sure of half, the short ones share the rest, so that neither waits for
   the other for ever.
3. Waiting requests are admitted in order of arrival, each with blocks for all its known tokens at once: a prefill,
   once begun, never runs out of blocks.
"""

from __future__ import annotations

from collections import deque

from tampu.core.config import EngineConfig
from tampu.core.errors import EngineDeadError, JsonModeError, TampuError
from tampu.core.output import FinishReason, RequestOutput
from tampu.core.request import Request
from tampu.core.step import SampledToken, ScheduledRequest, SchedulerOutput, StepOutput
from tampu.kvcache.block_pool import BlockPool
from tampu.kvcache.prefix_cache import PrefixCache
from tampu.scheduler.request_state import RequestState


class Scheduler:
    """All requests between submission and their last token. Call `schedule`, run the step, `update`, `take_outputs`.

    `preempt_every` forces a preemption every so many steps, so that tests meet the rare path constantly.
    """

    def __init__(self, config: EngineConfig, num_blocks: int, max_model_len: int, *, preempt_every: int = 0) -> None:
        assert 2 <= max_model_len <= num_blocks * config.block_size
        self.max_model_len = max_model_len
        self.pool = BlockPool(num_blocks)
        self.prefix_cache = PrefixCache(self.pool, config.block_size)
        self.waiting: deque[RequestState] = deque()
        self.running: list[RequestState] = []  # in order of arrival, like `waiting`; all of it before all of `waiting`
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self.num_preemptions = 0
        self.num_steps = 0
        self._config = config
        self._preempt_every = preempt_every
        self._states: dict[str, RequestState] = {}
        self._num_arrived = 0
        self._outputs: list[RequestOutput] = []
        self._finished_request_ids: list[str] = []  # the runner has not heard of yet

    @property
    def has_work(self) -> bool:
        """True while any request is unfinished."""
        return bool(self._states)

    def add(self, request: Request) -> None:
        """Queue a request. The caller has checked that prompt + 1 fits into `max_model_len` and that the id is new."""
        assert request.request_id not in self._states
        assert 1 <= len(request.prompt_token_ids) < self.max_model_len
        keys = self.prefix_cache.new_keys(request.lora_id, request.tenant)
        state = RequestState(request, self._num_arrived, keys)
        self._num_arrived += 1
        self._states[request.request_id] = state
        self.waiting.append(state)

    def abort(self, request_id: str, error: TampuError | None = None) -> bool:
        """End a request now; with an error it ends as failed. False when it is not here (any more)."""
        state = self._states.get(request_id)
        if state is None:
            return False
        self._finish(state, FinishReason.ABORT if error is None else FinishReason.ERROR, error=error)
        return True

    def abort_all(self, error: TampuError | None = None) -> None:
        """End every request."""
        for request_id in tuple(self._states):
            self.abort(request_id, error)

    def take_outputs(self) -> list[RequestOutput]:
        """News since the last call, in order."""
        outputs, self._outputs = self._outputs, []
        return outputs

    # -- one step: schedule, then update ------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput:
        """Decide the next step. Empty when nothing can run."""
        self.num_steps += 1
        if self._preempt_every and self.running and self.num_steps % self._preempt_every == 0:
            self._preempt_youngest()
        num_preemptions = self.num_preemptions
        scheduled: list[ScheduledRequest] = []
        budget = self._schedule_decodes(scheduled, self._config.max_num_batched_tokens)
        is_short_of_blocks = self.num_preemptions > num_preemptions
        self._schedule_prefills(scheduled, budget, can_admit=not is_short_of_blocks)
        if not scheduled:
            return SchedulerOutput(())  # no step: what the runner must forget stays on the list until there is one
        finished, self._finished_request_ids = tuple(self._finished_request_ids), []
        return SchedulerOutput(tuple(scheduled), finished)

    def update(self, scheduler_output: SchedulerOutput, step_output: StepOutput) -> None:
        """Take over what the step computed: publish written blocks, append sampled tokens, finish requests."""
        sampled = iter(step_output.sampled)
        for scheduled in scheduler_output.scheduled:
            state = self._states[scheduled.request.request_id]
            state.num_computed_tokens += scheduled.num_scheduled_tokens
            self._publish(state)
            if scheduled.is_sampled:
                token = next(sampled, None)
                if token is None or token.request_id != state.request.request_id:
                    raise EngineDeadError("The runner returned other samples than were scheduled.")
                self._append(state, token)

    # -- parts of schedule --------------------------------------------------------------------------------------------

    def _schedule_decodes(self, scheduled: list[ScheduledRequest], budget: int) -> int:
        """Requests that lack one token. Returns what is left of the budget, which covers them all by configuration."""
        block_size = self._config.block_size
        for state in tuple(self.running):
            if not state.is_running or state.num_remaining_tokens != 1:
                continue
            if state.num_computed_tokens == len(state.block_table) * block_size and not self._grow(state):
                continue
            scheduled.append(_run_of(state, 1))
            budget -= 1
        return budget

    def _grow(self, state: RequestState) -> bool:
        """One block more for a decoding request, at the youngest's expense; False when that is the request itself."""
        while self.pool.num_free == 0:
            self._preempt_youngest()
            if not state.is_running:
                return False
        state.block_table.append(self.pool.allocate())
        return True

    def _schedule_prefills(self, scheduled: list[ScheduledRequest], budget: int, *, can_admit: bool) -> None:
        """Requests that lack more than one token, running ones and then, block permitting, waiting ones."""
        long_states: list[RequestState] = []
        short_states: list[RequestState] = []
        for state in self.running:
            if state.num_remaining_tokens > 1:
                self._skip_cached(state)
                (long_states if self._is_long(state) else short_states).append(state)
        reserve = (budget + 1) // 2 if long_states else 0  # sure for the oldest long request
        for state in short_states:
            budget -= self._schedule_chunk(scheduled, state, budget - reserve)
        while can_admit and budget > reserve and self.waiting and len(self.running) < self._config.max_num_seqs:
            state = self.waiting[0]
            if not self._admit(state):
                break
            if self._is_long(state):
                reserve = reserve or (budget + 1) // 2
                long_states.append(state)
            else:
                budget -= self._schedule_chunk(scheduled, state, budget - reserve)
        for state in long_states:
            budget -= self._schedule_chunk(scheduled, state, budget)

    def _is_long(self, state: RequestState) -> bool:
        return state.num_remaining_tokens > self._config.max_num_batched_tokens

    def _schedule_chunk(self, scheduled: list[ScheduledRequest], state: RequestState, budget: int) -> int:
        """As many of the missing tokens as the budget allows. Returns how many it took."""
        num_tokens = min(state.num_remaining_tokens, budget)
        if num_tokens <= 0:
            return 0
        block_size = self._config.block_size
        if block_size <= num_tokens < state.num_remaining_tokens:
            # End at a block boundary: only there can blocks that others have published meanwhile be taken over.
            num_tokens -= (state.num_computed_tokens + num_tokens) % block_size
        scheduled.append(_run_of(state, num_tokens))
        return num_tokens

    # -- admission, blocks, preemption --------------------------------------------------------------------------------

    def _admit(self, state: RequestState) -> bool:
        """Move the head of the queue to `running` with blocks for all its known tokens; False when they do not fit."""
        block_size = self._config.block_size
        num_tokens = len(state.token_ids)
        num_needed = -(-num_tokens // block_size)
        hits: list[int] = []
        if self._config.enable_prefix_caching:
            # At least one token is always computed: a sample needs the last token's logits.
            hits = self.prefix_cache.match(state.block_keys, state.token_ids, 0, (num_tokens - 1) // block_size)
        num_idle_hits = sum(self.pool.reference_count(block_id) == 0 for block_id in hits)
        # Every running request may soon need one block more; without this margin the newcomer would be preempted for
        # it at once, its work lost. When nothing runs there is no margin, so whatever may be submitted can run alone.
        num_available = self.pool.num_free - num_idle_hits - len(self.running)
        if num_needed - len(hits) > num_available:
            return False
        self.waiting.popleft()
        for block_id in hits:
            self.pool.share(block_id)
            state.block_table.append(block_id)
        for _ in range(num_needed - len(hits)):
            state.block_table.append(self.pool.allocate())
        state.num_computed_tokens = len(hits) * block_size
        state.num_published_blocks = len(hits)
        if state.num_preemptions == 0:
            self.num_prefix_queries += num_tokens
            self._count_hits(state, len(hits))
        state.is_running = True
        self.running.append(state)
        return True

    def _skip_cached(self, state: RequestState) -> None:
        """Take over blocks that another request published since this one was admitted, instead of computing them."""
        block_size = self._config.block_size
        if not self._config.enable_prefix_caching or state.num_computed_tokens % block_size:
            return
        first = state.num_computed_tokens // block_size
        last = (len(state.token_ids) - 1) // block_size
        hits = self.prefix_cache.match(state.block_keys, state.token_ids, first, last)
        for index, block_id in enumerate(hits, start=first):
            self.pool.share(block_id)
            self.pool.release((state.block_table[index],))  # never written
            state.block_table[index] = block_id
        if hits:
            state.num_computed_tokens += len(hits) * block_size
            state.num_published_blocks = first + len(hits)
            if state.num_preemptions == 0:
                self._count_hits(state, len(hits))

    def _count_hits(self, state: RequestState, num_blocks: int) -> None:
        num_tokens = num_blocks * self._config.block_size
        self.num_prefix_hits += num_tokens
        state.num_cached_tokens += num_tokens

    def _publish(self, state: RequestState) -> None:
        """Offer the blocks that this step has filled to the prefix cache: now their KV is written."""
        if not self._config.enable_prefix_caching:
            return
        num_full = state.num_computed_tokens // self._config.block_size
        for index in range(state.num_published_blocks, num_full):
            self.prefix_cache.publish(state.block_keys, state.token_ids, index, state.block_table[index])
        state.num_published_blocks = max(state.num_published_blocks, num_full)

    def _preempt_youngest(self) -> None:
        state = self.running[-1]
        self._release(state)
        state.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(state)

    def _release(self, state: RequestState) -> None:
        """Give back whatever the request holds. Idempotent."""
        if not state.is_running:
            return
        state.is_running = False
        self.running.remove(state)
        self.pool.release(reversed(state.block_table))
        del state.block_table[:]
        state.num_computed_tokens = 0
        state.num_published_blocks = 0

    # -- parts of update ----------------------------------------------------------------------------------------------

    def _append(self, state: RequestState, token: SampledToken) -> None:
        """One token more for a request, which it may finish."""
        token_id = token.token_id
        if state.constraint_error is not None:
            self._finish(state, FinishReason.ERROR, error=_constraint_error(state.constraint_error))
            return
        if token_id < 0:
            self._finish(state, FinishReason.ERROR, error=_no_token_error(state.request))
            return
        constraint = state.request.constraint
        if constraint is not None:
            try:
                constraint.accept(token_id)
            except Exception as error:
                self._finish(state, FinishReason.ERROR, error=_constraint_error(error))
                return
        if state.num_output_tokens == 0:
            self.num_prompt_tokens += len(state.request.prompt_token_ids)
        state.token_ids.append(token_id)
        self.num_generated_tokens += 1
        reason = self._finish_reason(state, token_id)
        if reason is not None:
            self._finish(state, reason, token)
            return
        logprobs = () if token.logprobs is None else (token.logprobs,)
        self._outputs.append(
            RequestOutput(state.request.request_id, (token_id,), logprobs, None, state.num_cached_tokens)
        )

    def _finish_reason(self, state: RequestState, token_id: int) -> FinishReason | None:
        if token_id in state.stop_token_ids:
            return FinishReason.STOP
        if state.num_output_tokens >= state.request.sampling_params.max_tokens:
            return FinishReason.LENGTH
        if len(state.token_ids) >= self.max_model_len:
            return FinishReason.LENGTH
        return None

    def _finish(
        self,
        state: RequestState,
        reason: FinishReason,
        token: SampledToken | None = None,
        *,
        error: TampuError | None = None,
    ) -> None:
        """The terminal output of a request, and nothing of it left here."""
        if state.is_running:
            self._release(state)
        else:
            self.waiting.remove(state)
        del self._states[state.request.request_id]
        self._finished_request_ids.append(state.request.request_id)
        self._outputs.append(
            RequestOutput(
                state.request.request_id,
                () if token is None else (token.token_id,),
                () if token is None or token.logprobs is None else (token.logprobs,),
                reason,
                state.num_cached_tokens,
                error,
            )
        )

    def check_integrity(self) -> None:
        """Assert that the tables agree with each other. For tests; slow."""
        block_size = self._config.block_size
        everyone = [*self.running, *self.waiting]
        assert len(everyone) == len(self._states)
        assert [s.arrival for s in everyone] == sorted(s.arrival for s in everyone), "order of arrival is broken"
        assert len(self.running) <= self._config.max_num_seqs
        counts = [0] * self.pool.num_blocks
        for state in everyone:
            assert self._states[state.request.request_id] is state
            assert state.is_running == (state in self.running)
            assert len(set(state.block_table)) == len(state.block_table), "a block twice in one table"
            assert state.num_computed_tokens <= len(state.block_table) * block_size
            assert state.num_computed_tokens < len(state.token_ids), "nothing left to compute, nothing sampled"
            if not state.is_running:
                assert not state.block_table
                assert state.num_computed_tokens == 0
            for block_id in state.block_table:
                counts[block_id] += 1
        for block_id, count in enumerate(counts):
            assert self.pool.reference_count(block_id) == count, f"block {block_id} is held by {count} requests"
        self.pool.check_integrity()
        self.prefix_cache.check_integrity()


def _run_of(state: RequestState, num_tokens: int) -> ScheduledRequest:
    """The next tokens of a request as a part of the step."""
    is_sampled = num_tokens == state.num_remaining_tokens
    return ScheduledRequest(
        state.request,
        state.token_ids,
        state.num_computed_tokens,
        num_tokens,
        state.block_table,
        is_sampled,
        state.next_mask if is_sampled and state.request.constraint is not None else None,
    )


def _constraint_error(error: Exception) -> TampuError:
    if isinstance(error, TampuError):
        return error
    return JsonModeError(str(error))


def _no_token_error(request: Request) -> TampuError:
    if request.constraint is not None:
        return JsonModeError("no token is allowed next")
    return TampuError("The model returned no finite probabilities for this request.")
