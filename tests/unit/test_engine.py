"""Engine: the promises of its docstring, on fakes, in milliseconds. No test sleeps in order to wait."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from simulated_runner import SimulatedRunner, random_request, solo_tokens

from tampu.core.config import EngineConfig
from tampu.core.errors import (
    AdapterError,
    ConfigError,
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
    OverloadedError,
    RequestAbortedError,
)
from tampu.core.output import FinishReason, RequestOutput
from tampu.core.request import Request
from tampu.core.sampling_params import SamplingParams
from tampu.core.step import SchedulerOutput, StepOutput
from tampu.engine.engine import Engine
from tampu.engine.runner_protocol import ModelRunner
from tampu.runner.scripted import ScriptedRunner

WAIT_S = 20.0


class Inbox:
    """Collects what an engine delivers; a second terminal output fails the test."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.outputs: dict[str, list[RequestOutput]] = defaultdict(list)
        self.terminal: dict[str, RequestOutput] = {}
        self.faults: list[str] = []
        self.num_deliveries = 0

    def deliver(self, outputs: list[RequestOutput]) -> None:
        with self._changed:
            self.num_deliveries += 1
            for output in outputs:
                if output.request_id in self.terminal:
                    self.faults.append(f"{output} came after the terminal output")
                self.outputs[output.request_id].append(output)
                if output.finish_reason is not None:
                    self.terminal[output.request_id] = output
                if (output.error is not None) != (output.finish_reason is FinishReason.ERROR):
                    self.faults.append(f"{output}: error and reason disagree")
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), "nothing came"
            assert self.faults == []

    def end_of(self, request_id: str) -> RequestOutput:
        self.wait_for(lambda: request_id in self.terminal)
        return self.terminal[request_id]

    def tokens_of(self, request_id: str) -> list[int]:
        return [token for output in self.outputs[request_id] for token in output.new_token_ids]


class GatedRunner(ScriptedRunner):
    """A step begins only when the test lets it."""

    def __init__(self) -> None:
        super().__init__(lambda request: range(1, 200_000))
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)

    def execute(self, scheduler_output: SchedulerOutput) -> StepOutput:
        self.entered.release()
        assert self.gate.acquire(timeout=WAIT_S)
        return super().execute(scheduler_output)

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=WAIT_S)


@contextmanager
def running(runner: ModelRunner, config: EngineConfig | None = None, **settings: int) -> Iterator[tuple[Engine, Inbox]]:
    runner.load()
    engine, inbox = Engine(runner, config or EngineConfig(), **settings), Inbox()
    engine.start(inbox.deliver)
    try:
        yield engine, inbox
    finally:
        if isinstance(runner, GatedRunner):
            runner.gate.release(100_000)
        engine.close()
    assert inbox.faults == []
    assert engine._active == {}
    assert engine._inbox == []


def scripted(reply: Callable[[Request], Sequence[int]] | None = None, *, num_blocks: int = 1024) -> ScriptedRunner:
    runner = ScriptedRunner(reply, num_blocks=num_blocks)
    runner.load()
    return runner


def request(request_id: str = "a", num_prompt: int = 3, max_tokens: int = 4, **rest: object) -> Request:
    params = SamplingParams(max_tokens=max_tokens, stop_token_ids=(0,))
    return Request(request_id, tuple(range(1, num_prompt + 1)), params, seed=0, **rest)  # type: ignore[arg-type]


def submit_all(engine: Engine, requests: list[Request]) -> None:
    for item in requests:
        engine.submit(item)


def wait_for_end(engine: Engine) -> None:
    thread = engine._thread
    assert thread is not None
    thread.join(WAIT_S)
    assert not thread.is_alive()


# -- finishing --------------------------------------------------------------------------------------------------------


def test_a_request_is_answered() -> None:
    runner = ScriptedRunner()
    runner.queue_reply([5, 6])
    with running(runner) as (engine, inbox):
        engine.submit(request(max_tokens=9))
        assert inbox.end_of("a").finish_reason is FinishReason.STOP
        assert inbox.tokens_of("a") == [5, 6, 0]
        assert engine.health().is_ready
    assert runner.is_closed
    assert not engine.health().is_alive


def test_one_delivery_for_each_step_at_most() -> None:
    runner = GatedRunner()
    with running(runner) as (engine, inbox):
        for name in "abcd":
            engine.submit(request(name, max_tokens=3))
        runner.gate.release(20)
        inbox.wait_for(lambda: len(inbox.terminal) == 4)
        assert inbox.num_deliveries <= len(runner.step_log)


def test_a_finished_id_may_be_used_again_from_within_the_delivery() -> None:
    engine = Engine(scripted(lambda request: [1]), EngineConfig())
    done = threading.Event()
    rounds: list[RequestOutput] = []

    def deliver(outputs: list[RequestOutput]) -> None:
        for output in outputs:
            if output.finish_reason is not None:
                rounds.append(output)
                if len(rounds) == 5:
                    done.set()
                else:
                    engine.submit(request())

    engine.start(deliver)
    engine.submit(request())
    assert done.wait(WAIT_S)
    engine.close()
    assert len(rounds) == 5


def test_stats_count_what_happened() -> None:
    with running(ScriptedRunner(lambda request: [1, 2])) as (engine, inbox):
        for name in "ab":
            engine.submit(request(name, num_prompt=40, max_tokens=3))
            inbox.end_of(name)
        assert engine.drain(WAIT_S)
        stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks == stats.num_blocks == 1024
    assert (stats.prompt_tokens_total, stats.generated_tokens_total) == (80, 6)
    assert (stats.prefix_cache_queries_total, stats.prefix_cache_hits_total) == (80, 32)
    assert stats.num_cached_blocks == 2
    assert stats.steps_total >= 6
    assert inbox.terminal["b"].num_cached_tokens == 32


# -- refusing ---------------------------------------------------------------------------------------------------------


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    """Trap 1: an over-long prompt was logged and dropped, and its client waited for ever."""
    with running(ScriptedRunner(num_blocks=2)) as (engine, inbox):
        assert engine.max_model_len == 32
        with pytest.raises(ContextLengthError) as caught:
            engine.submit(request(num_prompt=32))
        assert (caught.value.num_prompt_tokens, caught.value.max_model_len) == (32, 32)
        engine.submit(request(num_prompt=31, max_tokens=100))
        assert inbox.end_of("a").finish_reason is not None


@pytest.mark.parametrize(
    ("settings", "config", "expected"),
    [
        ({}, {}, 64),
        ({"model_max_len": 40}, {}, 40),
        ({"model_max_len": 40}, {"max_model_len": 20}, 20),
        ({"model_max_len": 400}, {"max_model_len": 300}, 64),
    ],
)
def test_the_real_context_is_the_smallest_limit(
    settings: dict[str, int], config: dict[str, int], expected: int
) -> None:
    with running(ScriptedRunner(num_blocks=4), EngineConfig(**config), **settings) as (engine, _):
        assert engine.max_model_len == expected


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (request(num_prompt=0), InvalidRequestError),
        (Request("a", (1, -1), SamplingParams(), seed=0), InvalidRequestError),
        (Request("a", (1, 100), SamplingParams(), seed=0), InvalidRequestError),
        (Request("a", (1,), SamplingParams(logit_bias=((100, 1.0),)), seed=0), InvalidRequestError),
        (request(lora_id="unknown"), AdapterError),
    ],
)
def test_a_bad_request_is_refused_by_name(bad: Request, error: type[Exception]) -> None:
    with running(ScriptedRunner(), vocab_size=100) as (engine, inbox):
        with pytest.raises(error):
            engine.submit(bad)
        engine.submit(request("good"))
        inbox.end_of("good")
        assert bad.request_id not in inbox.outputs


def test_an_id_in_use_is_refused() -> None:
    runner = GatedRunner()
    with running(runner) as (engine, _):
        engine.submit(request())
        with pytest.raises(InvalidRequestError, match="being served"):
            engine.submit(request())


def test_a_full_queue_is_overload_and_empties_again() -> None:
    runner = GatedRunner()
    config = EngineConfig(max_num_seqs=1, max_num_waiting=2)
    with running(runner, config) as (engine, inbox):
        engine.submit(request("running"))
        runner.wait_until_entered()
        # The count includes the one that runs in the step under way: the engine hands in its count after the step.
        engine.submit(request("waiting"))
        with pytest.raises(OverloadedError) as caught:
            submit_all(engine, [request(f"too many {i}") for i in range(3)])
        assert caught.value.retry_after_s > 0
        runner.gate.release(1000)
        inbox.end_of("waiting")
        engine.submit(request("later"))
        inbox.end_of("later")


# -- abort ------------------------------------------------------------------------------------------------------------


def test_an_abort_takes_effect_before_the_next_step() -> None:
    runner = GatedRunner()
    with running(runner) as (engine, inbox):
        engine.submit(request("a", max_tokens=1000))
        engine.submit(request("b", max_tokens=2))
        runner.wait_until_entered()
        runner.gate.release()
        runner.wait_until_entered()
        engine.abort("a")
        runner.gate.release(100)
        assert inbox.end_of("a").finish_reason is FinishReason.ABORT
        inbox.end_of("b")
        assert len([step for step in runner.step_log if "a" in dict(step)]) <= 2
        engine.abort("a")
        engine.abort("never seen")
        assert engine.stats().aborts_total == 1


def test_an_abort_before_the_first_step() -> None:
    runner = GatedRunner()
    with running(runner) as (engine, inbox):
        engine.submit(request("a"))
        runner.wait_until_entered()
        engine.submit(request("b"))
        engine.abort("b")
        runner.gate.release(100)
        assert inbox.end_of("b").finish_reason is FinishReason.ABORT
        assert inbox.tokens_of("b") == []
        assert all("b" not in dict(step) for step in runner.step_log)


# -- failure ----------------------------------------------------------------------------------------------------------


def test_a_failure_reaches_every_waiter_and_every_later_caller() -> None:
    """Trap 10: the thread dies and later requests hang."""
    runner = GatedRunner()
    with running(runner, EngineConfig(max_num_seqs=2)) as (engine, inbox):
        for name in "abcd":
            engine.submit(request(name))
        runner.wait_until_entered()
        engine.submit(request("e"))
        runner.fail_next_step(RuntimeError("the device fell over"))
        runner.gate.release(100)
        for name in "abcde":
            error = inbox.end_of(name).error
            assert isinstance(error, EngineDeadError)
            assert "the device fell over" in str(error)
        wait_for_end(engine)
        for call in (lambda: engine.submit(request("f")), lambda: engine.add_adapter("x", "/x")):
            with pytest.raises(EngineDeadError, match="fell over"):
                call()
        health = engine.health()
        assert not health.is_alive
        assert not health.is_ready
        assert "fell over" in (health.failure or "")
        assert runner.is_closed
        assert engine.drain(0.0), "nothing is left to wait for"


def test_a_cache_without_blocks_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="kv_cache_bytes"):
        Engine(scripted(num_blocks=0), EngineConfig())


def test_a_listener_that_raises_fails_the_engine_and_hangs_nobody() -> None:
    engine = Engine(scripted(lambda request: [1, 2, 3]), EngineConfig())
    received: list[RequestOutput] = []

    def deliver(outputs: list[RequestOutput]) -> None:
        if not received:
            received.extend(outputs)
            raise RuntimeError("the event loop is closed")
        received.extend(outputs)

    engine.start(deliver)
    engine.submit(request())
    wait_for_end(engine)
    assert received[-1].finish_reason is FinishReason.ERROR
    assert not engine.health().is_alive
    engine.close()


# -- drain and close --------------------------------------------------------------------------------------------------


def test_drain_lets_the_accepted_finish_and_accepts_no_more() -> None:
    runner = GatedRunner()
    with running(runner) as (engine, inbox):
        engine.submit(request("a", max_tokens=3))
        runner.wait_until_entered()
        result: list[bool] = []
        thread = threading.Thread(target=lambda: result.append(engine.drain(WAIT_S)))
        thread.start()
        while engine.health().is_ready:
            thread.join(0.001)
        with pytest.raises(OverloadedError):
            engine.submit(request("b"))
        runner.gate.release(100)
        thread.join(WAIT_S)
        assert result == [True]
        assert inbox.terminal["a"].finish_reason is FinishReason.LENGTH
        assert engine.health().is_alive


@pytest.mark.parametrize("how", ["drain", "close"])
def test_what_is_not_finished_at_the_end_is_told_so(how: str) -> None:
    runner = GatedRunner()
    with running(runner, EngineConfig(max_num_seqs=1)) as (engine, inbox):
        for name in "abc":
            engine.submit(request(name, max_tokens=100_000))
        runner.wait_until_entered()
        runner.gate.release(100_000)
        if how == "drain":
            assert not engine.drain(0.0)
        else:
            engine.close()
        for name in "abc":
            assert isinstance(inbox.end_of(name).error, RequestAbortedError)
        engine.close()
        with pytest.raises(EngineDeadError):
            engine.submit(request("late"))


def test_close_from_within_the_delivery() -> None:
    engine = Engine(scripted(lambda request: range(1, 1000)), EngineConfig())
    inbox = Inbox()

    def deliver(outputs: list[RequestOutput]) -> None:
        inbox.deliver(outputs)
        engine.close()

    engine.start(deliver)
    engine.submit(request(max_tokens=900))
    assert isinstance(inbox.end_of("a").error, RequestAbortedError)
    wait_for_end(engine)


def test_close_without_start() -> None:
    runner = scripted()
    engine = Engine(runner, EngineConfig())
    assert engine.max_model_len == 1024 * 16
    assert not engine.health().is_ready
    with pytest.raises(EngineDeadError, match="not running"):
        engine.submit(request())
    engine.close()
    assert runner.is_closed
    assert not engine.health().is_alive


# -- adapters, idleness -----------------------------------------------------------------------------------------------


def test_adapters_are_loaded_between_steps() -> None:
    with running(ScriptedRunner(lambda request: [1])) as (engine, inbox):
        with pytest.raises(AdapterError, match="no path"):
            engine.add_adapter("x", "")
        engine.add_adapter("x", "/x")
        with pytest.raises(AdapterError, match="already"):
            engine.add_adapter("x", "/y")
        engine.submit(request(lora_id="x"))
        inbox.end_of("a")


def test_an_idle_engine_sleeps_until_it_is_called() -> None:
    """No polling: between two requests the thread waits once, without a time limit."""
    engine, inbox = Engine(scripted(lambda request: [1]), EngineConfig()), Inbox()
    waits: list[float | None] = []
    wait = engine._changed.wait

    def recorded_wait(timeout: float | None = None) -> bool:
        if threading.current_thread() is engine._thread:
            waits.append(timeout)
        return wait(timeout)

    engine._changed.wait = recorded_wait  # type: ignore[method-assign]
    engine.start(inbox.deliver)
    for name in "abc":
        engine.submit(request(name))
        inbox.end_of(name)
    engine.close()
    assert set(waits) <= {None}
    assert len(waits) <= 4


# -- random traffic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_random_traffic_from_several_threads(seed: int) -> None:
    """Traps 1, 2, 12: each request ends exactly once, with its own tokens, and leaves nothing behind."""
    rng = random.Random(seed)
    num_blocks = rng.choice((6, 30))
    runner = SimulatedRunner(num_blocks, 16)
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=rng.choice((32, 100)))
    plans = [[random_request(rng, f"{t}.{i}", max_prompt=80, max_tokens=25) for i in range(30)] for t in range(4)]
    with running(runner, config, preempt_every=rng.choice((0, 5))) as (engine, inbox):
        for lora_id in "ab":
            engine.add_adapter(lora_id, "/" + lora_id)

        def submit(plan: list[Request], own: random.Random) -> None:
            for item in plan:
                engine.submit(item)
                if own.random() < 0.1:
                    engine.abort(item.request_id)

        threads = [
            threading.Thread(target=submit, args=(plan, random.Random(seed * 10 + i))) for i, plan in enumerate(plans)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert engine.drain(WAIT_S)
        scheduler = engine._scheduler
        for item in (item for plan in plans for item in plan):
            expected = solo_tokens(item, engine.max_model_len)
            end = inbox.end_of(item.request_id)
            if end.finish_reason is FinishReason.ABORT:
                assert inbox.tokens_of(item.request_id) == expected[: len(inbox.tokens_of(item.request_id))]
            else:
                assert inbox.tokens_of(item.request_id) == expected
        assert len(inbox.terminal) == 120
    scheduler.check_integrity()
    assert not scheduler.has_work
    assert scheduler.pool.num_free == num_blocks


@pytest.mark.parametrize("seed", range(4))
def test_a_failure_in_the_middle_of_traffic_ends_every_request_once(seed: int) -> None:
    rng = random.Random(seed)
    runner = SimulatedRunner(20, 16, fail_at=rng.randint(1, 40))
    accepted: list[str] = []
    with running(runner, EngineConfig(max_num_seqs=4, max_num_batched_tokens=64)) as (engine, inbox):
        for lora_id in "ab":
            engine.add_adapter(lora_id, "/" + lora_id)
        for i in range(40):
            try:
                engine.submit(random_request(rng, str(i), max_prompt=60, max_tokens=20))
            except EngineDeadError:
                break
            accepted.append(str(i))
        wait_for_end(engine)
        assert sorted(inbox.terminal) == sorted(accepted)
        assert any(isinstance(o.error, EngineDeadError) for o in inbox.terminal.values())
