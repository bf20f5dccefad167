"""ScriptedRunner: the public fake keeps its promises."""

from __future__ import annotations

import pytest

from tampu.core.errors import AdapterError
from tampu.core.request import Request
from tampu.core.sampling_params import SamplingParams
from tampu.core.step import ScheduledRequest, SchedulerOutput
from tampu.engine.runner_protocol import ModelRunner
from tampu.runner.scripted import ScriptedRunner


def ask(runner: ScriptedRunner, request: Request, output: list[int], mask: bytes | None = None) -> tuple[int, object]:
    tokens = [*request.prompt_token_ids, *output]
    scheduled = ScheduledRequest(request, tokens, 0, len(tokens), [0], True, None if mask is None else lambda: mask)
    [sampled] = runner.execute(SchedulerOutput((scheduled,))).sampled
    return sampled.token_id, sampled.logprobs


def request(request_id: str = "r", **params: object) -> Request:
    return Request(request_id, (1, 2), SamplingParams(**params), seed=0)  # type: ignore[arg-type]


def loaded(runner: ScriptedRunner) -> ScriptedRunner:
    protocol: ModelRunner = runner
    protocol.load()
    return runner


def test_queued_replies_go_out_in_order_one_for_each_request() -> None:
    runner = loaded(ScriptedRunner(lambda request: [9], num_blocks=7))
    runner.queue_reply([4, 5])
    runner.queue_reply([6])
    a, b, c = request("a"), request("b"), request("c")
    assert runner.num_blocks() == 7
    assert [ask(runner, r, [])[0] for r in (a, b, c)] == [4, 6, 9]
    assert ask(runner, a, [4])[0] == 5


def test_after_the_reply_comes_the_stop_token_or_the_filler() -> None:
    runner = loaded(ScriptedRunner(lambda request: [4], filler_token_id=3))
    assert ask(runner, request("a", stop_token_ids=(8, 9)), [4])[0] == 8
    assert ask(runner, request("b"), [4])[0] == 3


def test_recomputed_tokens_do_not_move_the_script() -> None:
    runner = loaded(ScriptedRunner(lambda request: [4, 5, 6]))
    a = request()
    assert [ask(runner, a, o)[0] for o in ([], [4], [4], [], [4, 5])] == [4, 5, 5, 4, 6]


@pytest.mark.parametrize(
    ("allowed", "expected"), [({4}, 4), ({8, 2}, 8), ({11, 12}, 11), (set(), -1), (set(range(16)), 4)]
)
def test_a_mask_is_obeyed(allowed: set[int], expected: int) -> None:
    runner = loaded(ScriptedRunner(lambda request: [4]))
    mask = sum(1 << i for i in allowed).to_bytes(2, "little")
    assert ask(runner, request(stop_token_ids=(8,)), [], mask)[0] == expected


def test_logprobs_when_asked_for() -> None:
    runner = loaded(ScriptedRunner(lambda request: [4]))
    assert ask(runner, request("a"), [])[1] is None
    logprobs = ask(runner, request("b", num_logprobs=2), [])[1]
    assert logprobs is not None
    assert ask(runner, request("c", num_logprobs=0), [])[1] != logprobs


def test_it_fails_on_command_and_refuses_an_adapter_without_path() -> None:
    runner = loaded(ScriptedRunner())
    with pytest.raises(AdapterError):
        runner.add_adapter("a", "")
    runner.fail_next_step(RuntimeError("boom"))
    with pytest.raises(RuntimeError, match="boom"):
        ask(runner, request(), [])
    runner.close()
    runner.close()
    assert runner.is_closed
