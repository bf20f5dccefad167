"""The NumPy reference against logits of an independent implementation, and against itself under any scheduling."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from checkpoints import LLAMA3_SPECIALS, TINY, TINY_256, random_weights, write_gguf, write_hf_folder
from goldens.llama_models import (
    BUNDLED_TOKEN_IDS,
    GOLDEN_FILE,
    GOLDEN_MODELS,
    NUM_TOP,
    POSITIONS,
    SEED,
    golden_token_ids,
)
from tampu.core.config import EngineConfig
from tampu.core.errors import AdapterError, ConfigError
from tampu.core.request import Request
from tampu.core.sampling_params import SamplingParams
from tampu.core.step import SampledToken, ScheduledRequest, SchedulerOutput
from tampu.model.checkpoint import open_checkpoint
from tampu.model.config import ModelConfig
from tampu.runner.reference import ReferenceRunner

ENGINE = EngineConfig(block_size=16)


def open_runner(path: Path, engine_config: EngineConfig = ENGINE, kv_cache_dtype: str = "f16") -> ReferenceRunner:
    runner = ReferenceRunner(open_checkpoint(path), engine_config, kv_cache_dtype=kv_cache_dtype)
    runner.load()
    return runner


@pytest.fixture(scope="module", params=["f16", "q8"])
def tiny_runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReferenceRunner:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return open_runner(write_gguf(path, TINY, random_weights(TINY), qtype="Q8_0"), kv_cache_dtype=request.param)


@pytest.mark.parametrize("name", GOLDEN_MODELS)
class TestGoldens:
    def golden(self, name: str) -> np.ndarray:
        with np.load(GOLDEN_FILE, allow_pickle=False) as goldens:
            return np.asarray(goldens[name])

    @pytest.fixture
    def config(self, name: str) -> ModelConfig:
        return GOLDEN_MODELS[name]

    def test_folder_gives_the_logits_of_transformers(self, name: str, config: ModelConfig, tmp_path: Path) -> None:
        folder = write_hf_folder(tmp_path, config, random_weights(config, SEED))
        logits = open_runner(folder, kv_cache_dtype="f32").logits(golden_token_ids(config))
        assert np.abs(logits[list(POSITIONS)] - self.golden(name)).max() < 1e-4
        # f16 keys and values cost some thousandths of a unit.
        logits = open_runner(folder).logits(golden_token_ids(config))
        assert np.abs(logits[list(POSITIONS)] - self.golden(name)).max() < 3e-2

    def test_position_scaling_is_seen_by_the_comparison(self, name: str, config: ModelConfig, tmp_path: Path) -> None:
        other = dataclasses.replace(config, rope_theta=config.rope_theta * 1.01, rope_scaling=None)
        folder = write_hf_folder(tmp_path, other, random_weights(config, SEED))
        logits = open_runner(folder, kv_cache_dtype="f32").logits(golden_token_ids(config))
        assert np.abs(logits[list(POSITIONS)] - self.golden(name)).max() > 1e-2

    def test_gguf_of_the_same_model_gives_them_too(self, name: str, config: ModelConfig, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "model.gguf", config, random_weights(config, SEED))
        logits = open_runner(path, kv_cache_dtype="f32").logits(golden_token_ids(config))
        assert np.abs(logits[list(POSITIONS)] - self.golden(name)).max() < 1e-4


def request(prompt: Sequence[int], params: SamplingParams, request_id: str = "r", seed: int = 3) -> Request:
    return Request(request_id, tuple(prompt), params, seed)


def generate(
    runner: ReferenceRunner, wanted: Request, num_tokens: int, block_table: Sequence[int], chunk: int = 1 << 20
) -> list[SampledToken]:
    """One request alone, prefilled in chunks."""
    token_ids, done, sampled = list(wanted.prompt_token_ids), 0, []
    while len(sampled) < num_tokens:
        count = min(chunk, len(token_ids) - done)
        is_last = done + count == len(token_ids)
        step = SchedulerOutput((ScheduledRequest(wanted, token_ids, done, count, block_table, is_last),))
        output = runner.execute(step)
        done += count
        if is_last:
            sampled += output.sampled
            token_ids.append(sampled[-1].token_id)
    return sampled


LOGPROBS = SamplingParams(temperature=0.8, top_p=0.95, num_logprobs=3)
GREEDY = SamplingParams(temperature=0.0, num_logprobs=3)


class TestExecute:
    def test_paged_steps_agree_with_whole_sequence_logits(self, tiny_runner: ReferenceRunner) -> None:
        prompt = [5, 9, 300, 41, 41, 7] * 4
        sampled = generate(tiny_runner, request(prompt, GREEDY), 20, [9, 4, 30, 2], chunk=5)
        tokens = prompt + [s.token_id for s in sampled]
        logits = tiny_runner.logits(tokens).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for offset, s in enumerate(sampled):
            row = logprobs[len(prompt) + offset - 1]
            assert s.token_id == int(row.argmax())
            assert s.logprobs is not None
            assert s.logprobs.logprob == pytest.approx(row.max(), abs=1e-4)

    def test_rows_are_bit_identical_under_any_schedule(self, tiny_runner: ReferenceRunner) -> None:
        for trace in range(6):
            rng = random.Random(trace)
            requests = [
                request(
                    [rng.randrange(320) for _ in range(rng.randrange(1, 40))],
                    rng.choice([LOGPROBS, GREEDY, SamplingParams(temperature=1.5, top_k=40, num_logprobs=1)]),
                    f"{trace}-{i}",
                    rng.getrandbits(64),
                )
                for i in range(5)
            ]
            alone = {r.request_id: generate(tiny_runner, r, 12, range(100, 110)) for r in requests}
            assert run_together(tiny_runner, requests, 12, rng) == alone

    def test_block_is_shared_between_requests(self, tiny_runner: ReferenceRunner) -> None:
        prefix = list(range(10, 42))  # two whole blocks
        first, second = request([*prefix, 1], LOGPROBS, "a"), request([*prefix, 2, 3], LOGPROBS, "b", seed=9)
        alone = generate(tiny_runner, second, 5, [20, 21, 22])
        generate(tiny_runner, first, 1, [50, 51, 52])
        token_ids = list(second.prompt_token_ids)
        (sampled,) = tiny_runner.execute(
            SchedulerOutput((ScheduledRequest(second, token_ids, 32, 2, [50, 51, 60], True),))
        ).sampled
        assert sampled == alone[0]

    def test_row_without_a_token_does_not_disturb_the_others(self, tiny_runner: ReferenceRunner) -> None:
        good, bad = request([1, 2, 3], GREEDY, "good"), request([1, 2, 3], GREEDY, "bad")
        step = SchedulerOutput(
            (
                ScheduledRequest(bad, [1, 2, 3], 0, 3, [1], True, next_mask=lambda: bytes(40)),
                ScheduledRequest(good, [1, 2, 3], 0, 3, [2], True, next_mask=lambda: b"\xff" * 40),
            )
        )
        first, second = tiny_runner.execute(step).sampled
        assert (first.request_id, first.token_id) == ("bad", -1)
        assert second == generate(tiny_runner, good, 1, [3])[0]

    def test_broken_weights_are_reported_for_the_row(self, tmp_path: Path) -> None:
        weights = random_weights(TINY)
        weights["model.norm.weight"] = weights["model.norm.weight"] * np.float32(np.nan)
        runner = open_runner(write_gguf(tmp_path / "nan.gguf", TINY, weights))
        assert generate(runner, request([1, 2], LOGPROBS), 1, [0]) == [SampledToken("r", -1)]


def run_together(
    runner: ReferenceRunner, requests: Sequence[Request], num_tokens: int, rng: random.Random
) -> dict[str, list[SampledToken]]:
    """All requests at once, in random chunks and order, on scattered blocks, with preemption."""
    blocks = rng.sample(range(100), 10 * len(requests))
    tables = {r.request_id: blocks[10 * i : 10 * i + 10] for i, r in enumerate(requests)}
    token_ids = {r.request_id: list(r.prompt_token_ids) for r in requests}
    done = dict.fromkeys(token_ids, 0)
    sampled: dict[str, list[SampledToken]] = {request_id: [] for request_id in token_ids}
    while unfinished := [r for r in requests if len(sampled[r.request_id]) < num_tokens]:
        step = []
        for r in rng.sample(unfinished, rng.randrange(1, len(unfinished) + 1)):
            key = r.request_id
            if rng.random() < 0.05:  # preempted: computed again, on other blocks
                done[key] = 0
                rng.shuffle(tables[key])
            left = len(token_ids[key]) - done[key]
            count = rng.randrange(1, left + 1)
            step.append(ScheduledRequest(r, token_ids[key], done[key], count, tables[key], count == left))
        for s in runner.execute(SchedulerOutput(tuple(step))).sampled:
            sampled[s.request_id].append(s)
        for scheduled in step:
            key = scheduled.request.request_id
            done[key] += scheduled.num_scheduled_tokens
            if scheduled.is_sampled:
                token_ids[key].append(sampled[key][-1].token_id)
    return sampled


class TestLoad:
    @pytest.mark.parametrize("qtype", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
    def test_every_writable_format_gives_nearly_the_logits_of_f32(self, qtype: str, tmp_path: Path) -> None:
        weights = random_weights(TINY_256)
        exact = open_runner(write_gguf(tmp_path / "f32.gguf", TINY_256, weights)).logits(range(20))
        logits = open_runner(write_gguf(tmp_path / "q.gguf", TINY_256, weights, qtype=qtype)).logits(range(20))
        error = float(np.abs(logits - exact).mean() / exact.std())
        assert error < {"F32": 1e-9, "F16": 1e-3, "BF16": 5e-3, "Q8_0": 1e-2}.get(qtype, 0.25)

    @pytest.mark.parametrize("qtype", ["Q4_K", "Q5_K", "Q6_K"])
    def test_k_formats_run(self, qtype: str, tmp_path: Path) -> None:
        logits = open_runner(write_gguf(tmp_path / "k.gguf", TINY_256, random_weights(TINY_256), qtype=qtype))
        assert np.isfinite(logits.logits(range(20))).all()

    def test_kv_cache_bytes_decides_the_number_of_blocks(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "tiny.gguf", TINY, random_weights(TINY), specials=LLAMA3_SPECIALS)
        block_bytes = 2 * 2 * 16 * 2 * 16 * 2  # layers, k and v, rows, kv heads, head_dim, f16
        assert open_runner(path, EngineConfig(kv_cache_bytes=7 * block_bytes + 1)).num_blocks() == 7
        assert open_runner(path).num_blocks() == 512
        with pytest.raises(ConfigError, match="kv_cache_bytes"):
            open_runner(path, EngineConfig(kv_cache_bytes=block_bytes - 1))
        with pytest.raises(ConfigError, match="kv_cache_dtype"):
            open_runner(path, kv_cache_dtype="q4")

    def test_close_twice_and_no_adapters(self, tmp_path: Path) -> None:
        runner = open_runner(write_gguf(tmp_path / "tiny.gguf", TINY, random_weights(TINY)))
        with pytest.raises(AdapterError, match="my-lora"):
            runner.add_adapter("my-lora", "/nowhere")
        runner.close()
        runner.close()
        assert runner.num_blocks() == 0


@pytest.mark.bundled
class TestBundledModel:
    @pytest.fixture(scope="class")
    @classmethod
    def runner(cls, bundled_model: Path) -> ReferenceRunner:
        return open_runner(bundled_model, kv_cache_dtype="f32")

    def test_likely_tokens_have_the_logits_of_transformers(self, runner: ReferenceRunner) -> None:
        logits = runner.logits(BUNDLED_TOKEN_IDS)
        with np.load(GOLDEN_FILE, allow_pickle=False) as goldens:
            top, top_logits = goldens["bundled_top"], goldens["bundled_top_logits"]
        assert top.shape == (len(BUNDLED_TOKEN_IDS), NUM_TOP)
        assert np.abs(np.take_along_axis(logits, top, axis=-1) - top_logits).max() < 1e-3
        assert np.array_equal(logits.argmax(axis=-1), top[:, 0])

    def test_it_knows_the_capital_of_france(self, runner: ReferenceRunner, bundled_model: Path) -> None:
        """Real weights, real words, in the model's own chat form."""
        ids = {token: i for i, token in enumerate(open_checkpoint(bundled_model).tokenizer_spec.tokens)}
        words = "<|im_start|> user Ċ What Ġis Ġthe Ġcapital Ġof ĠFrance ? <|im_end|> Ċ <|im_start|> ass istant Ċ"
        prompt = [ids[word] for word in words.split(" ")]
        answer = [ids[word] for word in ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis", "ĠParis", "."]]
        logits = runner.logits([*prompt, *answer])
        assert logits[len(prompt) - 1 : -1].argmax(axis=-1).tolist() == answer
        # The same through the paged cache, one token at a time; a few, because each reads all the weights.
        assert generate(runner, request(prompt[:4], GREEDY), 1, [3])[0].token_id == logits[3].argmax()
