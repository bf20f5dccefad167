"""Scheduler: policies one by one, then seeded random walks against requests worked out alone."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from simulated_runner import SimulatedRunner, random_request, solo_tokens

from tampu.core.config import EngineConfig
from tampu.core.errors import EngineDeadError, JsonModeError, RequestAbortedError, TampuError
from tampu.core.output import FinishReason, RequestOutput
from tampu.core.request import Request, TokenConstraint
from tampu.core.sampling_params import SamplingParams
from tampu.core.step import SampledToken, SchedulerOutput, StepOutput, TokenLogprobs
from tampu.scheduler.scheduler import Scheduler

BLOCK = 16


def make(
    num_blocks: int = 64,
    max_model_len: int | None = None,
    *,
    preempt_every: int = 0,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    enable_prefix_caching: bool = True,
) -> Scheduler:
    config = EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        enable_prefix_caching=enable_prefix_caching,
    )
    return Scheduler(config, num_blocks, max_model_len or num_blocks * BLOCK, preempt_every=preempt_every)


def request(
    request_id: str,
    num_prompt: int = 4,
    max_tokens: int = 4,
    *,
    first: int = 0,
    stop: tuple[int, ...] = (),
    constraint: TokenConstraint | None = None,
) -> Request:
    prompt = tuple((first + i) % 1000 for i in range(num_prompt))
    params = SamplingParams(max_tokens=max_tokens, stop_token_ids=stop)
    return Request(request_id, prompt, params, seed=0, constraint=constraint)


def answer(output: SchedulerOutput, token_id: int = 1) -> StepOutput:
    sampled = []
    for scheduled in output.scheduled:
        mask = scheduled.next_mask() if scheduled.next_mask is not None else None
        if scheduled.is_sampled:
            sampled.append(SampledToken(scheduled.request.request_id, -1 if mask == b"" else token_id))
    return StepOutput(tuple(sampled))


def step(scheduler: Scheduler, token_id: int = 1) -> dict[str, int]:
    """One step in which every sample is `token_id`; returns how many tokens each request got computed."""
    output = scheduler.schedule()
    scheduler.update(output, answer(output, token_id))
    scheduler.check_integrity()
    return {s.request.request_id: s.num_scheduled_tokens for s in output.scheduled}


def run_out(scheduler: Scheduler) -> list[RequestOutput]:
    for _ in range(10_000):
        if not scheduler.has_work:
            return scheduler.take_outputs()
        assert step(scheduler), "stuck"
    raise AssertionError("no end")


def assert_empty(scheduler: Scheduler) -> None:
    """Trap 2: nothing stays behind."""
    assert not scheduler.has_work
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.pool.num_free == scheduler.pool.num_blocks
    assert scheduler._states == {}
    scheduler.check_integrity()


# -- finishing --------------------------------------------------------------------------------------------------------


def test_max_tokens_ends_with_length() -> None:
    scheduler = make()
    scheduler.add(request("a", max_tokens=3))
    outputs = run_out(scheduler)
    assert [o.new_token_ids for o in outputs] == [(1,), (1,), (1,)]
    assert [o.finish_reason for o in outputs] == [None, None, FinishReason.LENGTH]
    assert_empty(scheduler)


@pytest.mark.parametrize("stop_id", [5, 6, 9])
def test_any_of_the_stop_tokens_ends_with_stop(stop_id: int) -> None:
    """Trap 4: Llama 3.1 has three end tokens."""
    scheduler = make()
    scheduler.add(request("a", stop=(5, 6, 9)))
    step(scheduler, token_id=1)
    step(scheduler, token_id=stop_id)
    outputs = scheduler.take_outputs()
    assert [o.new_token_ids for o in outputs] == [(1,), (stop_id,)]
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert_empty(scheduler)


def test_the_context_limit_ends_with_length() -> None:
    scheduler = make(max_model_len=8)
    scheduler.add(request("a", num_prompt=5, max_tokens=100))
    outputs = run_out(scheduler)
    assert len(outputs) == 3
    assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_a_prompt_that_fills_the_whole_cache_still_gets_its_last_token() -> None:
    scheduler = make(num_blocks=2)
    scheduler.add(request("a", num_prompt=31, max_tokens=100))
    outputs = run_out(scheduler)
    assert [o.finish_reason for o in outputs] == [FinishReason.LENGTH]
    assert_empty(scheduler)


def test_logprobs_travel_with_their_token() -> None:
    scheduler = make()
    scheduler.add(request("a", max_tokens=2))
    logprobs = TokenLogprobs(-0.5, ((1, -0.5),))
    for _ in range(2):
        scheduler.update(scheduler.schedule(), StepOutput((SampledToken("a", 1, logprobs),)))
    assert [o.new_logprobs for o in scheduler.take_outputs()] == [(logprobs,), (logprobs,)]


def test_a_runner_that_returns_other_samples_is_a_failure() -> None:
    scheduler = make()
    scheduler.add(request("a"))
    output = scheduler.schedule()
    with pytest.raises(EngineDeadError):
        scheduler.update(output, StepOutput(()))
    with pytest.raises(EngineDeadError):
        scheduler.update(output, StepOutput((SampledToken("b", 1),)))


def test_no_token_ends_one_request_with_an_error_and_spares_the_others() -> None:
    scheduler = make()
    scheduler.add(request("a"))
    scheduler.add(request("b"))
    output = scheduler.schedule()
    scheduler.update(output, StepOutput((SampledToken("a", -1), SampledToken("b", 1))))
    bad, good = scheduler.take_outputs()
    assert (bad.request_id, bad.finish_reason, bad.new_token_ids) == ("a", FinishReason.ERROR, ())
    assert isinstance(bad.error, TampuError)
    assert good.finish_reason is None
    scheduler.check_integrity()


# -- abort ------------------------------------------------------------------------------------------------------------


def test_abort_waiting_and_running() -> None:
    scheduler = make(max_num_seqs=1)
    scheduler.add(request("a"))
    scheduler.add(request("b"))
    step(scheduler)
    scheduler.take_outputs()
    assert scheduler.abort("b")
    assert scheduler.abort("a", RequestAbortedError("closing"))
    assert not scheduler.abort("a"), "only once"
    assert not scheduler.abort("never seen")
    first, second = scheduler.take_outputs()
    assert (first.request_id, first.finish_reason, first.error) == ("b", FinishReason.ABORT, None)
    assert (second.request_id, second.finish_reason) == ("a", FinishReason.ERROR)
    assert isinstance(second.error, RequestAbortedError)
    assert_empty(scheduler)


def test_the_runner_hears_of_the_finished_with_the_next_step() -> None:
    scheduler = make()
    scheduler.add(request("a", max_tokens=1))
    step(scheduler)
    assert scheduler.schedule() == SchedulerOutput(())
    scheduler.add(request("b"))
    assert scheduler.schedule().finished_request_ids == ("a",)
    assert scheduler.schedule().finished_request_ids == ()


# -- budget and fairness ----------------------------------------------------------------------------------------------


def test_prefill_is_cut_to_the_budget_and_samples_only_at_its_end() -> None:
    scheduler = make(max_num_batched_tokens=32)
    scheduler.add(request("a", num_prompt=70))
    assert [step(scheduler) for _ in range(4)] == [{"a": 32}, {"a": 32}, {"a": 6}, {"a": 1}]
    assert len(scheduler.take_outputs()) == 2


def test_long_prefills_never_stop_the_output_of_others() -> None:
    scheduler = make(num_blocks=400, max_num_seqs=8, max_num_batched_tokens=32)
    scheduler.add(request("chat", num_prompt=3, max_tokens=50))
    step(scheduler)
    for i in range(6):
        scheduler.add(request(f"book {i}", num_prompt=700, first=i * 7 + 1))
    for _ in range(49):
        shares = step(scheduler)
        assert shares["chat"] == 1
        assert sum(shares.values()) > 16
    assert "chat" not in step(scheduler)


def test_a_short_prompt_does_not_wait_for_long_ones_nor_the_reverse() -> None:
    scheduler = make(num_blocks=400, max_num_seqs=20, max_num_batched_tokens=64)
    scheduler.add(request("book", num_prompt=1000))
    scheduler.add(request("second book", num_prompt=1000, first=500))
    assert step(scheduler) == {"book": 64}
    for i in range(6):
        scheduler.add(request(f"note {i}", num_prompt=30, max_tokens=1, first=100 * i + 3))
    done: list[str] = []
    while len(done) < 6:
        shares = step(scheduler)
        assert shares["book"] >= 31 - 15, "half of the budget, cut to a block boundary"
        assert shares.get("second book", 0) < BLOCK, "long ones go one after the other, but for what the cut left"
        done += [o.request_id for o in scheduler.take_outputs() if o.finish_reason]
    assert done == [f"note {i}" for i in range(6)]
    assert scheduler.running[0].num_remaining_tokens > 500


def test_at_most_max_num_seqs_run_and_all_of_them_decode() -> None:
    scheduler = make(max_num_seqs=4, max_num_batched_tokens=4)
    for i in range(9):
        scheduler.add(request(str(i), num_prompt=1, max_tokens=3))
    assert step(scheduler) == {"0": 1, "1": 1, "2": 1, "3": 1}
    assert step(scheduler) == {"0": 1, "1": 1, "2": 1, "3": 1}
    assert len(scheduler.waiting) == 5
    run_out(scheduler)
    assert_empty(scheduler)


def test_first_come_first_served() -> None:
    scheduler = make(max_num_seqs=1)
    for i in range(5):
        scheduler.add(request(str(i), max_tokens=2))
    ended = [o.request_id for o in run_out(scheduler) if o.finish_reason]
    assert ended == ["0", "1", "2", "3", "4"]


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_a_request_that_does_not_fit_now_waits_for_blocks() -> None:
    scheduler = make(num_blocks=4)
    scheduler.add(request("a", num_prompt=33, max_tokens=3))
    scheduler.add(request("b", num_prompt=33, max_tokens=3, first=500))
    assert step(scheduler) == {"a": 33}
    assert len(scheduler.waiting) == 1
    run_out(scheduler)
    assert scheduler.num_preemptions == 0
    assert_empty(scheduler)


def test_the_youngest_is_preempted_and_comes_back_first() -> None:
    scheduler = make(num_blocks=4)
    scheduler.add(request("old", num_prompt=10, max_tokens=40))
    scheduler.add(request("young", num_prompt=10, max_tokens=40, first=500))
    scheduler.add(request("late", num_prompt=10, max_tokens=1, first=700))
    while not scheduler.num_preemptions:
        step(scheduler)
    assert [s.request.request_id for s in scheduler.running] == ["old"]
    assert scheduler.waiting[0].request.request_id == "young"
    seen = [o.request_id for o in run_out(scheduler) if o.finish_reason]
    assert seen.index("old") < seen.index("young")
    assert_empty(scheduler)


def test_two_requests_that_each_need_every_block_both_finish() -> None:
    """No livelock: the oldest always progresses, and the work of the other is not thrown away again and again."""
    scheduler = make(num_blocks=4, enable_prefix_caching=False)
    scheduler.add(request("a", num_prompt=8, max_tokens=56))
    scheduler.add(request("b", num_prompt=8, max_tokens=56, first=500))
    num_steps = 0
    while scheduler.has_work:
        step(scheduler)
        num_steps += 1
    assert num_steps < 3 * 56
    assert scheduler.num_preemptions == 1
    assert sum(len(o.new_token_ids) for o in scheduler.take_outputs()) == 112


# -- prefix cache -----------------------------------------------------------------------------------------------------


def test_the_last_token_of_a_cached_prompt_is_computed() -> None:
    """Trap 5: the whole prompt matched, nothing left to compute."""
    scheduler = make()
    scheduler.add(request("a", num_prompt=32, max_tokens=1))
    run_out(scheduler)
    scheduler.add(request("b", num_prompt=32, max_tokens=1))
    assert step(scheduler) == {"b": 16}
    assert scheduler.take_outputs()[-1].num_cached_tokens == 16
    assert scheduler.num_prefix_hits == 16
    assert scheduler.num_prefix_queries == 64


def test_a_block_is_published_only_once_its_step_is_done() -> None:
    """Trap 5: a block found before its KV was written."""
    scheduler = make(max_num_batched_tokens=200)
    scheduler.add(request("a", num_prompt=40))
    scheduler.add(request("b", num_prompt=40))
    output = scheduler.schedule()
    assert [s.num_computed_tokens for s in output.scheduled] == [0, 0]
    assert len(scheduler.prefix_cache) == 0
    scheduler.update(output, answer(output))
    assert len(scheduler.prefix_cache) == 2, "b's copies stay private"
    scheduler.check_integrity()


def test_a_running_prefill_takes_over_what_another_published_meanwhile() -> None:
    scheduler = make(max_num_batched_tokens=64, num_blocks=100)
    scheduler.add(request("a", num_prompt=60, max_tokens=1))
    scheduler.add(request("b", num_prompt=60, max_tokens=1))
    assert step(scheduler) == {"a": 60, "b": 4}
    scheduler = make(max_num_batched_tokens=64, num_blocks=100)
    scheduler.add(request("a", num_prompt=48, max_tokens=1))
    scheduler.add(request("b", num_prompt=60, max_tokens=1))
    assert step(scheduler) == {"a": 48, "b": 16}
    assert step(scheduler) == {"b": 60 - 48}
    assert scheduler.take_outputs()[-1].num_cached_tokens == 32


def test_output_tokens_are_found_by_the_next_turn() -> None:
    scheduler = make()
    scheduler.add(request("a", num_prompt=16, max_tokens=17))
    run_out(scheduler)
    prompt = (*range(16), *(1,) * 17, 5)
    scheduler.add(Request("b", prompt, SamplingParams(max_tokens=1), seed=0))
    assert step(scheduler) == {"b": 34 - 32}


def test_without_prefix_caching_nothing_is_kept() -> None:
    scheduler = make(enable_prefix_caching=False)
    for name in ("a", "b"):
        scheduler.add(request(name, num_prompt=40, max_tokens=1))
        assert step(scheduler) == {name: 40}
    assert scheduler.pool.num_cached == 0


# -- constraints ------------------------------------------------------------------------------------------------------


class Recorder:
    """Allows everything; remembers what it was told; raises where told to."""

    def __init__(self, *, fail_mask: int = -1, fail_accept: int = -1) -> None:
        self.accepted: list[int] = []
        self.num_masks = 0
        self._fail_mask, self._fail_accept = fail_mask, fail_accept

    def next_mask(self) -> bytes | None:
        if self.num_masks == self._fail_mask:
            raise ValueError("grammar exhausted")
        self.num_masks += 1
        return b"\xff" * 8

    def accept(self, token_id: int) -> None:
        if len(self.accepted) == self._fail_accept:
            raise ValueError("unexpected token")
        self.accepted.append(token_id)


def test_a_mask_comes_with_the_sampled_run_only() -> None:
    scheduler, constraint = make(max_num_batched_tokens=32), Recorder()
    scheduler.add(request("a", num_prompt=40, max_tokens=2, constraint=constraint))
    num_masks = []
    while scheduler.has_work:
        output = scheduler.schedule()
        assert constraint.num_masks == sum(num_masks), "a mask is made for the sampler, not for the scheduler"
        num_masks += [s.next_mask is not None for s in output.scheduled]
        scheduler.update(output, answer(output))
    assert num_masks == [False, True, True]
    assert constraint.num_masks == 2
    assert constraint.accepted == [1, 1]


@pytest.mark.parametrize("where", [{"fail_mask": 0}, {"fail_mask": 2}, {"fail_accept": 0}, {"fail_accept": 2}])
def test_a_constraint_that_raises_ends_its_request_alone(where: dict[str, int]) -> None:
    scheduler = make()
    scheduler.add(request("bad", max_tokens=9, constraint=Recorder(**where)))
    scheduler.add(request("good", max_tokens=9))
    outputs: dict[str, list[RequestOutput]] = defaultdict(list)
    for output in run_out(scheduler):
        outputs[output.request_id].append(output)
    assert len(outputs["good"]) == 9
    assert len(outputs["bad"]) == max(where.values()) + 1
    assert outputs["bad"][-1].finish_reason is FinishReason.ERROR
    assert isinstance(outputs["bad"][-1].error, JsonModeError)
    assert_empty(scheduler)


def test_a_constraint_is_not_told_again_what_preemption_recomputes() -> None:
    scheduler = make(preempt_every=3)
    constraints = [Recorder() for _ in range(3)]
    for i, constraint in enumerate(constraints):
        scheduler.add(request(str(i), max_tokens=30, constraint=constraint))
    run_out(scheduler)
    assert scheduler.num_preemptions > 5
    assert [len(c.accepted) for c in constraints] == [30, 30, 30]


# -- random walks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_random_walk_against_requests_worked_out_alone(seed: int) -> None:
    """Trap 12: whatever happens around a request, it reads its own history only and gets its own tokens."""
    rng = random.Random(seed)
    num_blocks = rng.choice((3, 5, 9, 40))
    max_num_seqs = rng.choice((1, 3, 8))
    budget = rng.choice((max_num_seqs, 17, 48, 200))
    preempt_every = rng.choice((0, 2, 7))
    if preempt_every * budget < 130:
        preempt_every = 0  # forced more often than a prefill takes, it would never end
    scheduler = make(
        num_blocks,
        preempt_every=preempt_every,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        enable_prefix_caching=seed % 4 != 0,
    )
    runner = SimulatedRunner(num_blocks, BLOCK)
    limit = scheduler.max_model_len
    num_requests = 80
    requests: dict[str, Request] = {}
    aborted: set[str] = set()
    outputs: dict[str, list[RequestOutput]] = defaultdict(list)
    for number in range(20_000):
        if len(requests) < num_requests and rng.random() < 0.3:
            new = random_request(rng, f"r{number}", max_prompt=min(limit - 1, 90), max_tokens=30)
            requests[new.request_id] = new
            scheduler.add(new)
        if requests and rng.random() < 0.01:
            victim = rng.choice(sorted(requests))
            if scheduler.abort(victim):
                aborted.add(victim)
        output = scheduler.schedule()
        if output.scheduled:
            scheduler.update(output, runner.execute(output))
        scheduler.check_integrity()
        for news in scheduler.take_outputs():
            outputs[news.request_id].append(news)
        if len(requests) == num_requests and not scheduler.has_work:
            break
        assert output.scheduled or not scheduler.has_work, "stuck"
    assert_empty(scheduler)
    assert runner.max_step_tokens <= budget
    for request_id, news in outputs.items():
        assert [o.finish_reason is not None for o in news] == [False] * (len(news) - 1) + [True], "one terminal, last"
        tokens = [token for o in news for token in o.new_token_ids]
        expected = solo_tokens(requests[request_id], limit)
        if request_id in aborted:
            assert tokens == expected[: len(tokens)]
        else:
            assert tokens == expected
    assert outputs.keys() == requests.keys()


@pytest.mark.parametrize(
    ("num_blocks", "min_preemptions", "min_hits"), [(6, 20, 0), (200, 0, 1000)], ids=["tiny", "larger"]
)
def test_the_walks_meet_the_rare_paths(num_blocks: int, min_preemptions: int, min_hits: int) -> None:
    """A walk that never preempts and never hits the cache would prove nothing."""
    scheduler = make(num_blocks, max_num_seqs=6, max_num_batched_tokens=48)
    runner = SimulatedRunner(num_blocks, BLOCK)
    rng = random.Random(1)
    for i in range(300):
        scheduler.add(random_request(rng, str(i), max_prompt=90 if num_blocks > 6 else 40, max_tokens=40))
    while scheduler.has_work:
        output = scheduler.schedule()
        scheduler.update(output, runner.execute(output))
    assert scheduler.num_preemptions >= min_preemptions
    assert scheduler.num_prefix_hits >= min_hits
