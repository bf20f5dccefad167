"""The native runner on the bundled model and 2,000 positions of real text: what is proved, and what speed costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.model.checkpoint import Checkpoint, open_checkpoint
from tampu.runner.cpu import CpuRunner
from tampu.runner.reference import ReferenceRunner
from tampu.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.bundled

PROSE = Path(__file__).parent.parent / "goldens" / "prose.txt"
NUM_POSITIONS = 2000
CHUNK = 500  # positions compared at once: the logits of one chunk are 100 MB
ENGINE = EngineConfig(max_num_batched_tokens=512, kv_cache_bytes=64 << 20)

LogProbs = npt.NDArray[np.float32]


def log_softmax(logits: npt.NDArray[np.float32]) -> LogProbs:
    logits = logits - logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return logits


class Comparison:
    """Sums over positions of one runner against the reference."""

    def __init__(self) -> None:
        self.kl: list[npt.NDArray[np.float64]] = []
        self.agreements: list[npt.NDArray[np.bool_]] = []
        self.surprise = 0.0  # of the text, in nats, all positions

    def add(self, wanted: LogProbs, got: LogProbs, next_ids: npt.NDArray[np.int64]) -> None:
        self.kl.append(np.einsum("ij,ij->i", np.exp(wanted), wanted - got, dtype=np.float64))
        self.agreements.append(wanted.argmax(axis=-1) == got.argmax(axis=-1))
        self.surprise -= float(got[np.arange(next_ids.size), next_ids].sum(dtype=np.float64))

    @property
    def mean_kl(self) -> float:
        return float(np.concatenate(self.kl).mean())

    @property
    def agreement(self) -> float:
        return float(np.concatenate(self.agreements).mean())

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.surprise / NUM_POSITIONS))


@pytest.fixture(scope="module")
def checkpoint() -> Iterator[Checkpoint]:
    from tampu.model.bundled import bundled_model_path

    path = bundled_model_path()
    assert path is not None, "the bundled weights are not installed: run `make test`"
    checkpoint = open_checkpoint(path)
    yield checkpoint
    checkpoint.close()


@pytest.fixture(scope="module")
def comparisons(checkpoint: Checkpoint) -> dict[str, Comparison]:
    """By kind of activations, with the 8-bit cache, and the reference against itself."""
    token_ids = load_tokenizer(checkpoint.tokenizer_spec).encode(PROSE.read_text(encoding="utf-8"))
    assert len(token_ids) > NUM_POSITIONS
    reference = ReferenceRunner(checkpoint, ENGINE)
    reference.load()
    runners: dict[str, CpuRunner | ReferenceRunner] = {"reference": reference}
    for activations in ("f32", "int8"):  # on the best instruction set; the tiny models go through all of them
        runners[activations] = CpuRunner(checkpoint, ENGINE, CpuRunnerConfig(activations=activations))
    runners["int8, q8 cache"] = CpuRunner(checkpoint, ENGINE, CpuRunnerConfig(kv_cache_dtype="q8"))
    found = {name: Comparison() for name in runners}
    for runner in runners.values():
        runner.load()
    for begin in range(0, NUM_POSITIONS, CHUNK):
        chunk = token_ids[begin : begin + CHUNK]
        next_ids = np.asarray(token_ids[begin + 1 : begin + CHUNK + 1])
        wanted = log_softmax(reference.logits(chunk))
        for name, runner in runners.items():
            got = wanted if runner is reference else log_softmax(runner.logits(chunk))
            found[name].add(wanted, got, next_ids)
    for runner in runners.values():
        runner.close()
    return found


def test_f32_activations_prove_the_code(comparisons: dict[str, Comparison]) -> None:
    assert comparisons["f32"].mean_kl < 1e-6
    assert comparisons["f32"].agreement >= 0.999


@pytest.mark.parametrize(("name", "most"), [("int8", 1e-3), ("int8, q8 cache", 2.5e-3)])
def test_eight_bits_cost_what_was_agreed(comparisons: dict[str, Comparison], name: str, most: float) -> None:
    perplexity = comparisons["reference"].perplexity
    assert 2 < perplexity < 100, "the text must be neither memorised nor noise"
    assert comparisons[name].mean_kl <= most
    assert abs(comparisons[name].perplexity / perplexity - 1) < 0.005


def resident_kib(path: Path) -> int:
    """Memory held by mappings of a file."""
    total, is_inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            is_inside = line.endswith(str(path.resolve()))
        elif is_inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_the_8_bit_cache_holds_nearly_twice_the_tokens(checkpoint: Checkpoint) -> None:
    blocks = {}
    for kv_cache_dtype in ("f16", "q8"):
        runner = CpuRunner(checkpoint, ENGINE, CpuRunnerConfig(kv_cache_dtype=kv_cache_dtype))
        runner.load()
        blocks[kv_cache_dtype] = runner.num_blocks()
        runner.close()
    assert blocks["q8"] > 1.85 * blocks["f16"]


def test_memory_is_what_the_runner_says(checkpoint: Checkpoint) -> None:
    runner = CpuRunner(checkpoint, ENGINE)
    runner.load()
    assert 0 < runner.weight_bytes < 1.1 * checkpoint.file_bytes
    assert resident_kib(checkpoint.path) < 1024, "the file's own pages are given back after packing"
    assert 0.9 * (64 << 20) < runner.kv_cache_bytes <= 64 << 20
    runner.close()
    assert runner.weight_bytes == runner.num_blocks() == 0
