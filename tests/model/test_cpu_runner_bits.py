"""Reproducibility of the native runner, to the last bit: neighbours, chunks, threads, block tables and stale KV memory
change nothing, on every instruction set, with both kinds of activations and both KV caches."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from test_reproducibility import in_waves, one_by_one, random_requests, serve

from checkpoints import TINY, random_weights, write_gguf
from tampu import _native
from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.model.checkpoint import Checkpoint, open_checkpoint
from tampu.runner.cpu import CpuRunner

Logits = npt.NDArray[np.float32]

CONFIG = dataclasses.replace(
    TINY, num_attention_heads=6, num_key_value_heads=2, hidden_size=96, max_position_embeddings=1024
)
LENGTH = 600  # more than two partitions of keys
SETTINGS = (("int8", "f16"), ("f32", "f16"), ("int8", "q8"))
VARIANTS = [
    CpuRunnerConfig(isa=isa, activations=activations, kv_cache_dtype=kv_cache_dtype)
    for isa in _native.available_isas()
    for activations, kv_cache_dtype in SETTINGS
]
each_variant = pytest.mark.parametrize("cpu", VARIANTS, ids=lambda c: f"{c.isa} {c.activations} {c.kv_cache_dtype}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return open_checkpoint(write_gguf(path, CONFIG, random_weights(CONFIG), qtype="Q4_1"))


def make_runner(checkpoint: Checkpoint, engine: EngineConfig, cpu: CpuRunnerConfig, threads: int) -> CpuRunner:
    runner = CpuRunner(checkpoint, engine, dataclasses.replace(cpu, num_threads=threads))
    runner.load()
    runner.poison_kv_cache()
    return runner


def sequences(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [rng.choices(range(CONFIG.vocab_size), k=rng.randint(1, LENGTH)) for _ in range(count)]


def run_together(runner: CpuRunner, texts: Sequence[Sequence[int]], block_size: int, seed: int) -> list[Logits]:
    """Logits of all texts, computed in steps of random chunks of random texts, over shuffled blocks."""
    rng = random.Random(seed)
    llama = runner._llama
    assert llama is not None
    free = rng.sample(range(runner.num_blocks()), runner.num_blocks())
    tables = [[free.pop() for _ in range(-(-len(text) // block_size))] for text in texts]
    out = [np.empty((len(text), CONFIG.vocab_size), dtype=np.float32) for text in texts]
    done = [0] * len(texts)
    while any(done[i] < len(text) for i, text in enumerate(texts)):
        waiting = [i for i, text in enumerate(texts) if done[i] < len(text)]
        budget, runs, places = 256, [], []
        for i in rng.sample(waiting, rng.randint(1, len(waiting))):
            size = min(rng.choice((1, 1, 2, 7, 16, 33, 100)), len(texts[i]) - done[i], budget)
            if size > 0:
                runs.append((texts[i][done[i] : done[i] + size], done[i], tables[i], None, None))
                places.append((i, size))
                budget -= size
        logits = np.empty((256 - budget, CONFIG.vocab_size), dtype=np.float32)
        llama.compute_logits(runs, logits)
        row = 0
        for i, size in places:
            out[i][done[i] : done[i] + size] = logits[row : row + size]
            done[i] += size
            row += size
    return out


@each_variant
def test_logits_are_the_same_alone_and_in_any_company(checkpoint: Checkpoint, cpu: CpuRunnerConfig) -> None:
    engine = EngineConfig(max_num_seqs=64, max_num_batched_tokens=512, kv_cache_bytes=16 << 20)
    text = random.Random(1).choices(range(CONFIG.vocab_size), k=LENGTH)
    alone = make_runner(checkpoint, engine, cpu, threads=1)
    expected = alone.logits(text)
    alone.close()
    assert np.isfinite(expected).all()
    # 32 others make up the company once; chunks, threads and block sizes vary with fewer.
    for threads, num_others, block_size in ((1, 32, 16), (2, 5, 64), (3, 2, 32), (4, 0, 16)):
        config = dataclasses.replace(engine, block_size=block_size)
        runner = make_runner(checkpoint, config, cpu, threads)
        got = run_together(runner, [text, *sequences(num_others, seed=threads)], block_size, seed=threads)[0]
        runner.close()
        np.testing.assert_array_equal(got, expected, err_msg=f"{threads} threads, {num_others} others")


@pytest.mark.parametrize("kv_cache_dtype", ["f16", "q8"])
def test_one_token_at_a_time_equals_one_prefill_for_a_long_context(checkpoint: Checkpoint, kv_cache_dtype: str) -> None:
    engine = EngineConfig(max_num_seqs=8, max_num_batched_tokens=1024, kv_cache_bytes=16 << 20)
    text = random.Random(2).choices(range(CONFIG.vocab_size), k=1000)
    runner = make_runner(checkpoint, engine, CpuRunnerConfig(kv_cache_dtype=kv_cache_dtype), threads=2)
    expected = runner.logits(text)
    runner.poison_kv_cache()
    llama = runner._llama
    assert llama is not None
    table = list(range(63))
    llama.compute_logits([(text[:900], 0, table, None, None)], np.empty((900, CONFIG.vocab_size), dtype=np.float32))
    for position in range(900, 1000):
        row = np.empty((1, CONFIG.vocab_size), dtype=np.float32)
        llama.compute_logits([([text[position]], position, table, None, None)], row)
        np.testing.assert_array_equal(row[0], expected[position])


@each_variant
def test_served_answers_are_the_same_alone_and_together(checkpoint: Checkpoint, cpu: CpuRunnerConfig) -> None:
    requests = random_requests(5, 24, vocab_size=CONFIG.vocab_size, max_prompt=150, max_tokens=24)
    solo = EngineConfig(max_num_seqs=1, max_num_batched_tokens=512, kv_cache_bytes=8 << 20)
    alone = make_runner(checkpoint, solo, cpu, threads=1)
    expected = one_by_one(alone, solo, requests)
    alone.close()
    for threads, budget, num_blocks, preempt_every in ((2, 64, None, 0), (3, 200, 40, 5)):
        config = dataclasses.replace(solo, max_num_seqs=32, max_num_batched_tokens=budget)
        runner = make_runner(checkpoint, config, cpu, threads)
        waves = in_waves(requests, seed=threads)
        served = serve(runner, config, waves, num_blocks=num_blocks, preempt_every=preempt_every)
        runner.close()
        assert served.answers == expected
