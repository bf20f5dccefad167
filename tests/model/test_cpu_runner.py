"""The native runner against the NumPy reference: same logits on every instruction set, bad input refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from checkpoints import LLAMA31_SCALING, TINY, TINY_256, random_weights, write_gguf
from tampu import _native
from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.core.errors import AdapterError, CheckpointError, ConfigError
from tampu.core.request import Request
from tampu.core.sampling_params import SamplingParams
from tampu.core.step import ScheduledRequest, SchedulerOutput
from tampu.model.checkpoint import Checkpoint, open_checkpoint
from tampu.model.config import ModelConfig
from tampu.runner import cpu
from tampu.runner.cpu import CpuRunner
from tampu.runner.reference import ReferenceRunner

ISAS = _native.available_isas()
ENGINE = EngineConfig(max_num_seqs=8, max_num_batched_tokens=64, kv_cache_bytes=8 << 20)

ODD = dataclasses.replace(
    TINY,
    vocab_size=333,
    hidden_size=84,
    intermediate_size=116,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=14,
    tie_word_embeddings=False,
)
MODELS: dict[str, tuple[ModelConfig, str]] = {
    "grouped queries, tied": (TINY, "F32"),
    "odd sizes, untied": (ODD, "F16"),
    "one head each, rope scaling": (
        dataclasses.replace(TINY, num_key_value_heads=4, rope_scaling=LLAMA31_SCALING),
        "BF16",
    ),
    "wide heads, one for all": (dataclasses.replace(TINY, head_dim=80, num_key_value_heads=1), "Q8_0"),
    "Q4_0": (TINY, "Q4_0"),
    "Q4_1, untied": (dataclasses.replace(TINY, tie_word_embeddings=False), "Q4_1"),
    "Q4_K": (TINY_256, "Q4_K"),
    "Q6_K, rope scaling": (dataclasses.replace(TINY_256, rope_scaling=LLAMA31_SCALING), "Q6_K"),
}


def tiny_checkpoint(folder: Path, config: ModelConfig = TINY, qtype: str = "F32") -> Checkpoint:
    return open_checkpoint(write_gguf(folder / "tiny.gguf", config, random_weights(config), qtype=qtype, specials=()))


def loaded(checkpoint: Checkpoint, engine: EngineConfig = ENGINE, **settings: object) -> CpuRunner:
    runner = CpuRunner(checkpoint, engine, dataclasses.replace(CpuRunnerConfig(num_threads=2), **settings))
    runner.load()
    runner.poison_kv_cache()
    return runner


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def mean_kl(wanted: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> float:
    p, q = log_softmax(wanted), log_softmax(got)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def random_ids(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocab_size, count)]


@pytest.mark.parametrize("name", MODELS)
def test_logits_match_the_reference_on_every_instruction_set(name: str, tmp_path: Path) -> None:
    config, qtype = MODELS[name]
    checkpoint = tiny_checkpoint(tmp_path, config, qtype)
    token_ids = random_ids(200, config.vocab_size)
    reference = ReferenceRunner(checkpoint, ENGINE)
    reference.load()
    wanted = reference.logits(token_ids)
    for isa in ISAS:
        for activations, bound in (("f32", 1e-6), ("int8", 2e-2)):
            if activations == "int8" and qtype not in ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"):
                continue
            runner = loaded(checkpoint, isa=isa, activations=activations)
            got = runner.logits(token_ids)
            assert mean_kl(wanted, got) < bound, (isa, activations)
            if activations == "f32":
                assert (wanted.argmax(-1) == got.argmax(-1)).mean() >= 0.999, isa
            runner.close()


@pytest.mark.parametrize("name", MODELS)
def test_the_8_bit_cache_matches_the_reference_with_the_same_cache(name: str, tmp_path: Path) -> None:
    config, qtype = MODELS[name]
    checkpoint = tiny_checkpoint(tmp_path, config, qtype)
    token_ids = random_ids(200, config.vocab_size)
    reference = ReferenceRunner(checkpoint, ENGINE, kv_cache_dtype="q8")
    reference.load()
    wanted = reference.logits(token_ids)
    for isa in ISAS:
        runner = loaded(checkpoint, isa=isa, activations="f32", kv_cache_dtype="q8")
        got = runner.logits(token_ids)
        runner.close()
        assert mean_kl(wanted, got) < 1e-6, isa
        # A number between two bytes may be rounded to either, and then a row of near ties has another first.
        assert (wanted.argmax(-1) == got.argmax(-1)).mean() >= 0.99, isa


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def runner(tiny: Checkpoint) -> Iterator[CpuRunner]:
    runner = loaded(tiny)
    yield runner
    runner.close()


def request(name: str, prompt: Sequence[int], **params: object) -> Request:
    return Request(name, tuple(prompt), dataclasses.replace(SamplingParams(temperature=0.0), **params), seed=7)


def one_step(runner: CpuRunner, of: Request, token_ids: Sequence[int], mask: bytes | bytearray | None = None) -> int:
    """Compute the whole sequence in one step and return the token sampled after it."""
    blocks = range(-(-len(token_ids) // ENGINE.block_size))
    next_mask = None if mask is None else lambda: mask
    scheduled = ScheduledRequest(of, token_ids, 0, len(token_ids), blocks, is_sampled=True, next_mask=next_mask)
    (row,) = runner.execute(SchedulerOutput((scheduled,))).sampled
    assert row.request_id == of.request_id
    return row.token_id


def test_greedy_step_gives_the_reference_argmax_and_logprobs(runner: CpuRunner, tiny: Checkpoint) -> None:
    reference = ReferenceRunner(tiny, ENGINE)
    reference.load()
    token_ids = random_ids(40, TINY.vocab_size)
    logits = reference.logits(token_ids)[-1]
    asked = request("a", token_ids, num_logprobs=3)
    scheduled = ScheduledRequest(asked, token_ids, 0, 40, range(3), is_sampled=True)
    (row,) = runner.execute(SchedulerOutput((scheduled,))).sampled
    wanted = np.sort(log_softmax(logits))[::-1]
    assert row.token_id == int(logits.argmax())
    assert row.logprobs is not None
    assert row.logprobs.logprob == pytest.approx(wanted[0], abs=1e-4)
    assert [p for _, p in row.logprobs.top] == pytest.approx(list(wanted[:3]), abs=1e-4)


def test_penalties_follow_the_whole_history_across_steps(runner: CpuRunner, tiny: Checkpoint) -> None:
    reference = ReferenceRunner(tiny, ENGINE)
    reference.load()
    asked = request("a", random_ids(5, TINY.vocab_size), repetition_penalty=1.7, frequency_penalty=0.8)
    tokens = list(asked.prompt_token_ids)
    for step in range(30):
        computed = 0 if step == 0 else len(tokens) - 1
        scheduled = ScheduledRequest(asked, tokens, computed, len(tokens) - computed, range(4), is_sampled=True)
        output = SchedulerOutput((scheduled,))
        (row,) = runner.execute(output).sampled
        assert reference.execute(output).sampled[0].token_id == row.token_id
        tokens.append(row.token_id)


def test_a_finished_request_id_starts_afresh(runner: CpuRunner) -> None:
    prompt = random_ids(5, TINY.vocab_size)
    params = {"repetition_penalty": 3.0, "frequency_penalty": 2.0}
    first = one_step(runner, request("a", prompt, **params), prompt)
    runner.execute(SchedulerOutput((), finished_request_ids=("a",)))
    other = random_ids(5, TINY.vocab_size, seed=9)
    one_step(runner, request("a", other, **params), other)
    runner.execute(SchedulerOutput((), finished_request_ids=("a",)))
    assert one_step(runner, request("a", prompt, **params), prompt) == first


def test_an_empty_mask_gives_no_token(runner: CpuRunner) -> None:
    prompt = random_ids(5, TINY.vocab_size)
    assert one_step(runner, request("a", prompt), prompt, mask=bytes(40)) == -1
    only_nine = bytearray(40)
    only_nine[1] = 2
    assert one_step(runner, request("b", prompt), prompt, mask=bytes(only_nine)) == 9
    assert one_step(runner, request("c", prompt), prompt, mask=only_nine) == 9


def test_every_row_asks_for_its_own_mask_once_and_while_the_step_runs(tiny: Checkpoint) -> None:
    runner = loaded(tiny, num_threads=3)
    asked: list[int] = []

    def mask_of(token_id: int) -> Callable[[], bytearray]:
        def next_mask() -> bytearray:
            asked.append(token_id)
            mask = bytearray(40)
            mask[token_id // 8] = 1 << token_id % 8
            return mask

        return next_mask

    step = SchedulerOutput(
        tuple(
            ScheduledRequest(
                request(str(i), [i + 1]), [i + 1], 0, 1, [i], True, next_mask=mask_of(i) if i % 2 else None
            )
            for i in range(8)
        )
    )
    free = [row.token_id for row in runner.execute(dataclasses.replace(step, scheduled=step.scheduled[::2])).sampled]
    assert asked == []
    for _ in range(20):
        sampled = [row.token_id for row in runner.execute(step).sampled]
        assert sampled[1::2] == [1, 3, 5, 7]
        assert sampled[::2] == free
    assert sorted(asked) == sorted([1, 3, 5, 7] * 20)
    runner.close()


def test_what_a_mask_raises_ends_the_step_and_the_runner_stays_usable(runner: CpuRunner) -> None:
    def broken() -> bytes:
        raise KeyError("no such mask")

    prompt = random_ids(5, TINY.vocab_size)
    before = one_step(runner, request("a", prompt), prompt)
    rows = [ScheduledRequest(request(name, [1]), [1], 0, 1, [0], True, next_mask=broken) for name in "bc"]
    with pytest.raises(KeyError, match="no such mask"):
        runner.execute(SchedulerOutput(tuple(rows)))
    assert one_step(runner, request("a", prompt), prompt) == before


@pytest.mark.parametrize("kv_cache_dtype", ["f16", "q8"])
def test_nan_logits_give_no_token_for_that_row_only(tmp_path: Path, kv_cache_dtype: str) -> None:
    weights = random_weights(TINY)
    weights["model.embed_tokens.weight"][17] = np.nan
    config = dataclasses.replace(TINY, tie_word_embeddings=False)
    weights["lm_head.weight"] = random_weights(config)["lm_head.weight"]
    checkpoint = open_checkpoint(write_gguf(tmp_path / "nan.gguf", config, weights, specials=()))
    runner = loaded(checkpoint, kv_cache_dtype=kv_cache_dtype)
    good = ScheduledRequest(request("good", [1, 2, 3]), [1, 2, 3], 0, 3, [0], is_sampled=True)
    bad = ScheduledRequest(request("bad", [1, 17, 3]), [1, 17, 3], 0, 3, [1], is_sampled=True)
    alone = runner.execute(SchedulerOutput((good,))).sampled[0].token_id
    runner.poison_kv_cache()
    both = [row.token_id for row in runner.execute(SchedulerOutput((bad, good))).sampled]
    assert both == [-1, alone]


@pytest.mark.parametrize("kv_cache_dtype", ["f16", "q8"])
@pytest.mark.parametrize("isa", _native.available_isas())
def test_nan_of_a_later_token_does_not_reach_the_tokens_before_it(
    tmp_path: Path, isa: str, kv_cache_dtype: str
) -> None:
    """Whether they are computed with it or before it, and in blocks that others share."""
    weights = random_weights(TINY)
    weights["model.embed_tokens.weight"][17] = np.nan
    config = dataclasses.replace(TINY, tie_word_embeddings=False)
    weights["lm_head.weight"] = random_weights(config)["lm_head.weight"]
    checkpoint = open_checkpoint(write_gguf(tmp_path / "nan.gguf", config, weights, specials=()))
    runner = loaded(checkpoint, isa=isa, kv_cache_dtype=kv_cache_dtype)
    llama = runner._llama
    assert llama is not None
    prompt = [token for token in random_ids(20, TINY.vocab_size) if token != 17][:16]

    def logits(token_ids: list[int], start: int, table: list[int]) -> np.ndarray:
        out = np.empty((len(token_ids), TINY.vocab_size), dtype=np.float32)
        llama.compute_logits([(token_ids, start, table, None, None)], out)
        return out

    clean = logits(prompt, 0, [0])
    poisoned = logits([*prompt, 17, 1], 0, [1, 2])
    np.testing.assert_array_equal(poisoned[:16], clean)
    assert np.isnan(poisoned[16:]).all()
    np.testing.assert_array_equal(logits([1, 2], 16, [1, 3]), logits([1, 2], 16, [0, 4]))


BAD_RUNS: dict[str, tuple[object, ...]] = {
    "negative token": ([-1], 0, [0], None, None),
    "token beyond the vocabulary": ([320], 0, [0], None, None),
    "token beyond 32 bits": ([1 << 40], 0, [0], None, None),
    "no tokens": ([], 0, [0], None, None),
    "negative position": ([1], -1, [0], None, None),
    "huge position": ([1], 2**31 - 1, [0], None, None),
    "position beyond the table": ([1, 2], 15, [0], None, None),
    "empty table": ([1], 0, [], None, None),
    "negative block": ([1], 0, [-1], None, None),
    "block beyond the cache": ([1], 0, [1 << 20], None, None),
    "too many tokens": ([1] * 65, 0, list(range(5)), None, None),
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_bad_input_is_refused_and_the_runner_stays_usable(name: str, runner: CpuRunner) -> None:
    prompt = random_ids(20, TINY.vocab_size)
    before = one_step(runner, request("a", prompt), prompt)
    llama = runner._llama
    assert llama is not None
    good = ([1, 2], 0, [3], None, None)
    with pytest.raises(ValueError):
        llama.execute([good, BAD_RUNS[name]])  # type: ignore[list-item]
    assert one_step(runner, request("a", prompt), prompt) == before


def test_a_state_of_another_vocabulary_and_a_wrong_mask_are_refused(runner: CpuRunner) -> None:
    llama = runner._llama
    assert llama is not None
    settings = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    settings |= {"frequency_penalty": 0.0, "presence_penalty": 0.0, "seed": 0, "num_logprobs": -1, "logit_bias": []}
    state = _native.SamplingState(vocab_size=100_000, num_prompt_tokens=1, **settings)
    with pytest.raises(ValueError, match="vocabulary"):
        llama.execute([([1], 0, [0], state, None)])
    own = _native.SamplingState(vocab_size=TINY.vocab_size, num_prompt_tokens=1, **settings)
    with pytest.raises(ValueError, match="vocabulary"):
        own.observe([TINY.vocab_size])
    with pytest.raises(TypeError):
        llama.execute([([1], 0, [0], own, "mask")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="vocabulary"):
        _native.SamplingState(vocab_size=10, num_prompt_tokens=1, **{**settings, "logit_bias": [(10, 1.0)]})


def test_wrong_weight_shapes_are_refused(tiny: Checkpoint) -> None:
    llama = loaded(tiny)._llama
    assert llama is not None
    data = np.zeros(64 * 64 * 4, dtype=np.uint8)
    with pytest.raises(ValueError, match="rows"):
        llama.set_linear("o_proj", 0, [("F32", data, 63)], 64)
    with pytest.raises(ValueError, match="rows"):
        llama.set_linear("o_proj", 0, [("F32", data[: 32 * 64 * 4], 32)], 64)
    with pytest.raises(ValueError, match="layer"):
        llama.set_linear("o_proj", 2, [("F32", data, 64)], 64)
    with pytest.raises(ValueError, match="known"):
        llama.set_linear("x_proj", 0, [("F32", data, 64)], 64)
    with pytest.raises(ValueError, match="hidden_size"):
        llama.set_norm("norm", 0, np.zeros(63, dtype=np.float32))


def test_calls_out_of_order_are_refused(tiny: Checkpoint) -> None:
    llama = loaded(tiny)._llama
    assert llama is not None
    with pytest.raises(RuntimeError, match="allocate"):
        llama.set_linear("o_proj", 0, [("F32", np.zeros(64 * 64 * 4, dtype=np.uint8), 64)], 64)
    with pytest.raises(RuntimeError, match="allocate"):
        llama.set_norm("norm", 0, np.zeros(64, dtype=np.float32))
    with pytest.raises(RuntimeError, match="allocate"):
        llama.allocate(2, 16)
    with pytest.raises(TypeError):  # a converted copy would take the result
        llama.compute_logits([([1], 0, [0], None, None)], np.empty((1, TINY.vocab_size)))  # type: ignore[arg-type]


def test_sizes_are_chosen_and_refused_with_numbers(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="kv_cache_bytes"):
        loaded(tiny, dataclasses.replace(ENGINE, kv_cache_bytes=100))
    with pytest.raises(ConfigError, match="MiB"):
        loaded(tiny, dataclasses.replace(ENGINE, kv_cache_bytes=1 << 50))
    runner = loaded(tiny, dataclasses.replace(ENGINE, kv_cache_bytes=None))
    assert runner.num_blocks() == cpu.DEFAULT_KV_REQUESTS * TINY.max_position_embeddings // 16
    assert runner.kv_cache_bytes == runner.num_blocks() * 2 * 2 * 2 * 16 * 16 * 2
    assert (runner.kv_cache_dtype, loaded(tiny, kv_cache_dtype="q8").kv_cache_dtype) == ("f16", "q8")
    monkeypatch.setattr(cpu, "available_memory_bytes", lambda: 1 << 20)
    with pytest.raises(CheckpointError, match="1 MiB are available"):
        loaded(tiny)


def test_unknown_choices_are_refused(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "available_isas", lambda: ["portable"])
    with pytest.raises(ConfigError, match="isa: this machine cannot run avx2"):
        CpuRunner(tiny, ENGINE, CpuRunnerConfig(isa="avx2"))
    with pytest.raises(AdapterError):
        CpuRunner(tiny, ENGINE).add_adapter("lora", "/nowhere")


def test_the_groups_that_the_final_norm_scales_up_most_are_fine() -> None:
    norm = np.ones(9 * 32, dtype=np.float32)
    norm[[3 * 32, 8 * 32 + 31]] = 5, -7
    norm[32:64] = 1.5
    assert list(cpu.fine_groups_of_head(norm)) == [0, 1, 0, 1, 0, 0, 0, 0, 1]  # a quarter, rounded up
    assert list(cpu.fine_groups_of_head(norm[:32])) == [1]
    assert cpu.fine_groups_of_head(norm[:48]) == b""
