"""The promise: a request's tokens and log probabilities depend on the request alone, to the last bit.

Each scenario serves the same seeded random requests in another way (one by one, all at once among others, other token
budgets, warm prefix cache, too few blocks, forced preemption, other thread counts) and compares bit by bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from checkpoints import TINY, random_weights, write_gguf
from tampu import _native
from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.core.request import Request
from tampu.core.sampling_params import SamplingParams
from tampu.core.step import TokenLogprobs
from tampu.engine.runner_protocol import ModelRunner
from tampu.model.checkpoint import Checkpoint, open_checkpoint
from tampu.runner.cpu import CpuRunner
from tampu.runner.reference import ReferenceRunner
from tampu.scheduler.scheduler import Scheduler

Answer = tuple[tuple[int, ...], tuple[TokenLogprobs, ...]]
Answers = Mapping[str, Answer]
MakeRunner = Callable[[EngineConfig], ModelRunner]

BLOCK = 16


@dataclass
class Serving:
    """What came of serving some requests together."""

    answers: dict[str, Answer] = field(default_factory=dict)
    num_preemptions: int = 0
    num_prefix_hits: int = 0


def serve(
    runner: ModelRunner,
    config: EngineConfig,
    waves: Sequence[Iterable[Request]],
    *,
    num_blocks: int | None = None,
    preempt_every: int = 0,
) -> Serving:
    """Submit one wave of requests before each step; use only `num_blocks` of the runner's blocks."""
    num_blocks = num_blocks or runner.num_blocks()
    scheduler = Scheduler(config, num_blocks, min(512, num_blocks * BLOCK), preempt_every=preempt_every)
    tokens: dict[str, list[int]] = {}
    logprobs: dict[str, list[TokenLogprobs]] = {}
    arrivals = list(waves)
    while arrivals or scheduler.has_work:
        for request in arrivals.pop(0) if arrivals else ():
            tokens[request.request_id], logprobs[request.request_id] = [], []
            scheduler.add(request)
        step = scheduler.schedule()
        if step.scheduled:
            scheduler.update(step, runner.execute(step))
        for output in scheduler.take_outputs():
            assert output.error is None
            tokens[output.request_id] += output.new_token_ids
            logprobs[output.request_id] += output.new_logprobs
    scheduler.check_integrity()
    return Serving(
        {name: (tuple(tokens[name]), tuple(logprobs[name])) for name in tokens},
        scheduler.num_preemptions,
        scheduler.num_prefix_hits,
    )


def random_requests(seed: int, count: int, *, vocab_size: int, max_prompt: int, max_tokens: int) -> list[Request]:
    """Greedy and sampled, with and without filters and penalties; half the prompts begin alike."""
    rng = random.Random(seed)
    common = rng.choices(range(vocab_size), k=max_prompt)
    requests = []
    for number in range(count):
        num_prompt = rng.randint(1, max_prompt)
        num_shared = rng.choice((0, num_prompt))
        prompt = common[:num_shared] + rng.choices(range(vocab_size), k=num_prompt - num_shared)
        params = SamplingParams(
            temperature=rng.choice((0.0, 0.0, 0.7, 1.5)),
            top_k=rng.choice((0, 0, 20)),
            top_p=rng.choice((1.0, 0.9)),
            min_p=rng.choice((0.0, 0.05)),
            repetition_penalty=rng.choice((1.0, 1.2)),
            frequency_penalty=rng.choice((0.0, 0.5)),
            max_tokens=rng.randint(1, max_tokens),
            num_logprobs=3,
        )
        requests.append(Request(f"s{seed}r{number}", tuple(prompt), params, seed=rng.getrandbits(64)))
    return requests


def twins(requests: Sequence[Request]) -> list[Request]:
    """The same requests under other ids: a runner may keep state by id until it hears that the request is finished."""
    return [Request("twin " + r.request_id, r.prompt_token_ids, r.sampling_params, r.seed) for r in requests]


def in_waves(requests: Sequence[Request], seed: int) -> list[list[Request]]:
    """The same requests in another order, arriving in random crowds."""
    rng = random.Random(seed)
    shuffled = rng.sample(requests, len(requests))
    waves: list[list[Request]] = []
    while shuffled:
        size = rng.randint(0, 9)
        waves.append(shuffled[:size])
        shuffled = shuffled[size:]
    return waves


def one_by_one(runner: ModelRunner, config: EngineConfig, requests: Sequence[Request]) -> Answers:
    """Each request alone, with an empty prefix cache."""
    answers: dict[str, Answer] = {}
    for request in requests:
        answers |= serve(runner, config, [[request]]).answers
    return answers


@dataclass(frozen=True)
class Kind:
    """A runner and the weights it runs on."""

    name: str
    qtype: str
    cpu: CpuRunnerConfig | None = None  # None = the reference

    num_requests: int = 10


KINDS = [
    Kind("reference", "F32"),
    Kind("int8", "Q4_1", CpuRunnerConfig(num_threads=2), num_requests=33),
    *(Kind(f"int8 {isa}", "Q4_1", CpuRunnerConfig(isa=isa, num_threads=2)) for isa in _native.available_isas()[:-1]),
    Kind("int8 embeddings", "Q8_0", CpuRunnerConfig(num_threads=2)),
    Kind("f32 weights", "F32", CpuRunnerConfig(num_threads=2)),
    Kind("f32 activations", "Q4_0", CpuRunnerConfig(activations="f32", num_threads=2)),
    Kind("8-bit cache", "Q4_1", CpuRunnerConfig(kv_cache_dtype="q8", num_threads=2)),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    assert isinstance(request.param, Kind)
    return request.param


@pytest.fixture(scope="module")
def tiny(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    path = write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", TINY, random_weights(TINY), qtype=kind.qtype)
    checkpoint = open_checkpoint(path)
    yield checkpoint
    checkpoint.close()


@pytest.fixture(scope="module")
def make_runner(kind: Kind, tiny: Checkpoint) -> MakeRunner:
    return partial(loaded, tiny, kind.cpu)


def loaded(checkpoint: Checkpoint, cpu: CpuRunnerConfig | None, config: EngineConfig) -> ModelRunner:
    runner: ModelRunner
    runner = ReferenceRunner(checkpoint, config) if cpu is None else CpuRunner(checkpoint, config, cpu)
    runner.load()
    return runner


@pytest.fixture(scope="module")
def requests(kind: Kind) -> list[Request]:
    return random_requests(2, kind.num_requests, vocab_size=TINY.vocab_size, max_prompt=60, max_tokens=30)


@pytest.fixture(scope="module")
def alone(make_runner: MakeRunner, requests: list[Request]) -> Answers:
    config = EngineConfig(max_num_seqs=1, max_num_batched_tokens=512)
    runner = make_runner(config)
    answers = one_by_one(runner, config, requests)
    runner.close()
    assert len({tokens for tokens, _ in answers.values()}) > len(requests) // 2, "the answers must differ"
    return answers


def assert_equal(answers: Answers, expected: Answers) -> None:
    for name, (tokens, logprobs) in expected.items():
        assert answers[name][0] == tokens, name
        assert answers[name][1] == logprobs, f"{name}: equal tokens, other log probabilities"


@pytest.mark.parametrize("max_num_batched_tokens", [32, 47, 512])
def test_among_others_with_any_budget(
    make_runner: MakeRunner, requests: list[Request], alone: Answers, max_num_batched_tokens: int
) -> None:
    config = EngineConfig(max_num_seqs=32, max_num_batched_tokens=max_num_batched_tokens)
    runner = make_runner(config)
    served = serve(runner, config, in_waves(requests, seed=max_num_batched_tokens))
    runner.close()
    assert_equal(served.answers, alone)


def test_with_a_warm_prefix_cache(make_runner: MakeRunner, requests: list[Request], alone: Answers) -> None:
    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=128)
    runner = make_runner(config)
    served = serve(runner, config, [requests, *[[]] * 40, twins(requests)])
    runner.close()
    assert served.num_prefix_hits > 100
    assert_equal(served.answers, alone)
    assert_equal(served.answers, {"twin " + name: answer for name, answer in alone.items()})


def test_with_too_few_blocks(make_runner: MakeRunner, requests: list[Request], alone: Answers) -> None:
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=64, enable_prefix_caching=False)
    runner = make_runner(config)
    served = serve(runner, config, in_waves(requests, seed=1), num_blocks=6)
    runner.close()
    assert served.num_preemptions > 0
    assert_equal(served.answers, alone)


def test_with_forced_preemption(make_runner: MakeRunner, requests: list[Request], alone: Answers) -> None:
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=64)
    runner = make_runner(config)
    served = serve(runner, config, in_waves(requests, seed=4), preempt_every=3)
    runner.close()
    assert served.num_preemptions > 5
    assert_equal(served.answers, alone)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_with_other_numbers_of_threads(
    kind: Kind, tiny: Checkpoint, requests: list[Request], alone: Answers, num_threads: int
) -> None:
    cpu = None if kind.cpu is None else replace(kind.cpu, num_threads=num_threads)  # the reference has one thread
    config = EngineConfig(max_num_seqs=32, max_num_batched_tokens=256)
    runner = loaded(tiny, cpu, config)
    served = serve(runner, config, in_waves(requests, seed=num_threads))
    runner.close()
    assert_equal(served.answers, alone)


@pytest.mark.bundled
@pytest.mark.parametrize("kv_cache_dtype", ["f16", "q8"])
def test_the_bundled_model_alone_and_among_others(bundled_model: Path, kv_cache_dtype: str) -> None:
    checkpoint = open_checkpoint(bundled_model)
    requests = random_requests(3, 33, vocab_size=40_000, max_prompt=30, max_tokens=5)
    config = EngineConfig(max_num_seqs=33, max_num_batched_tokens=200, kv_cache_bytes=64 << 20)
    runner = loaded(checkpoint, CpuRunnerConfig(kv_cache_dtype=kv_cache_dtype), config)
    checkpoint.close()
    expected = {"twin " + name: answer for name, answer in one_by_one(runner, config, requests).items()}
    assert_equal(serve(runner, config, in_waves(twins(requests), seed=1), preempt_every=4).answers, expected)
    runner.close()
