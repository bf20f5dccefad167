"""A context of 131,072 tokens on the native runner: every position against a twin in plain NumPy, to the very last.

The model has one layer, so keys and values of a position follow from its token alone and the twin can compute the
attention of a few chosen rows without computing the others. Its attention is sharp: a position that is off by one, or
frequencies that are not scaled, give other answers altogether.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from checkpoints import TINY, random_weights, write_gguf
from tampu import _native
from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.core.output import FinishReason
from tampu.core.request import Request
from tampu.core.sampling_params import SamplingParams
from tampu.core.step import SampledToken, ScheduledRequest, SchedulerOutput, TokenLogprobs
from tampu.model.checkpoint import Checkpoint, open_checkpoint
from tampu.model.config import Llama3RopeScaling, ModelConfig
from tampu.model.rope import inv_freq, rope_cos_sin
from tampu.runner.cpu import CpuRunner
from tampu.scheduler.scheduler import Scheduler

Doubles = npt.NDArray[np.float64]

CONTEXT = 131_072
NUM_BLOCKS = CONTEXT // 16
CONFIG = dataclasses.replace(
    TINY,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=8,  # four frequencies: two stay, one is blended, one is divided by 8
    rope_theta=500_000.0,
    max_position_embeddings=CONTEXT,
    rope_scaling=Llama3RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    ),
)
SHARPNESS = 6  # factor on the queries: a handful of keys gets nearly all the weight, near and far ones alike
NUM_LOGPROBS = 20
CHECKED_POSITIONS = (0, 511, 512, 8191, 8192, 8193, 19_999, 65_535, 65_536, 100_000, CONTEXT - 2, CONTEXT - 1)
NUM_DECODED = 5
TOLERANCE = 1e-3  # of a log probability; seen: 1e-5, but one key that rounds to the other float16 costs more
ENGINE = EngineConfig(max_num_seqs=4, max_num_batched_tokens=512)


class Twin:
    """Log probabilities after chosen positions of a sequence, in double precision but for what is defined as rounded:
    the angles, and the keys and values in the cache."""

    def __init__(self, checkpoint: Checkpoint, frequencies: npt.NDArray[np.float32]) -> None:
        self.config: ModelConfig = checkpoint.config
        self.weights = {name: checkpoint.dequantize(name).astype(np.float64) for name in checkpoint.tensor_names()}
        self.frequencies = frequencies

    def logprobs(self, token_ids: Sequence[int], positions: Sequence[int]) -> Doubles:
        """(len(positions), vocab_size)."""
        hidden = self.weights["model.embed_tokens.weight"][np.asarray(token_ids)]
        normed = self._norm(hidden, "input_layernorm")
        everywhere = np.arange(len(token_ids))
        keys = self._rotate(normed @ self._matrix("self_attn.k_proj"), everywhere).astype(np.float16)
        values = (normed @ self._matrix("self_attn.v_proj")).astype(np.float16)
        rows = []
        for position in positions:
            q = self._rotate(normed[position : position + 1] @ self._matrix("self_attn.q_proj"), np.array([position]))
            scores = keys[: position + 1].astype(np.float64) @ q[0] / np.sqrt(self.config.head_dim)
            shares = np.exp(scores - scores.max())
            attended = shares @ values[: position + 1].astype(np.float64) / shares.sum()
            rows.append(self._after_attention(hidden[position], attended))
        return np.array(rows)

    def _after_attention(self, hidden: Doubles, attended: Doubles) -> Doubles:
        hidden = hidden + attended @ self._matrix("self_attn.o_proj")
        normed = self._norm(hidden, "post_attention_layernorm")
        gate = normed @ self._matrix("mlp.gate_proj")
        hidden = hidden + gate / (1 + np.exp(-gate)) * (normed @ self._matrix("mlp.up_proj")) @ self._matrix(
            "mlp.down_proj"
        )
        mean_square = np.mean(hidden * hidden) + self.config.rms_norm_eps
        normed = hidden / np.sqrt(mean_square) * self.weights["model.norm.weight"]
        logits = normed @ self.weights["model.embed_tokens.weight"].T
        logits -= logits.max()
        return np.asarray(logits - np.log(np.exp(logits).sum()))

    def _matrix(self, name: str) -> Doubles:
        return self.weights[f"model.layers.0.{name}.weight"].T

    def _norm(self, hidden: Doubles, name: str) -> Doubles:
        mean_square = np.mean(hidden * hidden, axis=-1, keepdims=True) + self.config.rms_norm_eps
        return np.asarray(hidden / np.sqrt(mean_square) * self.weights[f"model.layers.0.{name}.weight"])

    def _rotate(self, x: Doubles, positions: npt.NDArray[np.int64]) -> Doubles:
        cos, sin = rope_cos_sin(self.frequencies, positions)
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


@dataclasses.dataclass(frozen=True)
class LongRun:
    """What the runner said about one long sequence: log probabilities after positions, and how the request ended."""

    token_ids: tuple[int, ...]  # prompt and what was decoded, CONTEXT of them
    sampled: dict[int, tuple[int, TokenLogprobs]]  # by the position sampled after
    num_cached: dict[int, int]  # prompt tokens that came from the prefix cache, by position
    finish_reason: FinishReason | None
    block_table: tuple[int, ...]  # at the last step


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    weights = random_weights(CONFIG, seed=3)
    weights["model.layers.0.self_attn.q_proj.weight"] *= SHARPNESS
    path = tmp_path_factory.mktemp("long") / "long.gguf"
    return open_checkpoint(write_gguf(path, CONFIG, weights, specials=()))


def loaded(checkpoint: Checkpoint, engine: EngineConfig = ENGINE) -> CpuRunner:
    """A runner with room for exactly one sequence of full length."""
    block_bytes = _native.kv_block_bytes(
        "f16", num_layers=1, block_size=16, num_kv_heads=CONFIG.num_key_value_heads, head_dim=CONFIG.head_dim
    )
    engine = dataclasses.replace(engine, kv_cache_bytes=NUM_BLOCKS * block_bytes)
    runner = CpuRunner(checkpoint, engine, CpuRunnerConfig(num_threads=2, activations="f32"))
    runner.load()
    assert runner.num_blocks() == NUM_BLOCKS
    runner.poison_kv_cache()
    return runner


@pytest.fixture(scope="module")
def runner(checkpoint: Checkpoint) -> Iterator[CpuRunner]:
    runner = loaded(checkpoint)
    yield runner
    runner.close()


def greedy(name: str, prompt: Sequence[int], max_tokens: int) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, num_logprobs=NUM_LOGPROBS)
    return Request(name, tuple(prompt), params, seed=0)


@pytest.fixture(scope="module")
def long_run(runner: CpuRunner) -> LongRun:
    """Prefill in steps of 512 tokens and decode until the context ends; then ask about prefixes, which the prefix
    cache holds, so that each costs a step of a few tokens."""
    scheduler = Scheduler(ENGINE, runner.num_blocks(), CONTEXT)
    sampled: dict[int, tuple[int, TokenLogprobs]] = {}
    num_cached: dict[int, int] = {}

    def run(request: Request) -> tuple[list[int], FinishReason | None, tuple[int, ...]]:
        scheduler.add(request)
        answer: list[int] = []
        reason: FinishReason | None = None
        block_table: tuple[int, ...] = ()
        while scheduler.has_work:
            step = scheduler.schedule()
            (scheduled,) = step.scheduled
            assert scheduled.num_scheduled_tokens <= ENGINE.max_num_batched_tokens
            block_table = tuple(scheduled.block_table)
            scheduler.update(step, runner.execute(step))
            for output in scheduler.take_outputs():
                position = len(request.prompt_token_ids) + len(answer) - 1
                sampled[position] = (output.new_token_ids[0], output.new_logprobs[0])
                num_cached[position] = output.num_cached_tokens
                answer += output.new_token_ids
                reason = output.finish_reason
        return answer, reason, block_table

    prompt = np.random.default_rng(5).integers(3, CONFIG.vocab_size, CONTEXT - NUM_DECODED).tolist()
    answer, reason, block_table = run(greedy("long", prompt, max_tokens=1000))
    token_ids = (*prompt, *answer)
    # Nobody samples after the last position when serving, but it has logits, and nothing has touched its blocks yet.
    sampled[CONTEXT - 1] = sample_after(runner, token_ids, block_table, 1, computed=CONTEXT - 1)
    for position in CHECKED_POSITIONS:
        if position not in sampled:
            run(greedy(f"prefix {position}", prompt[: position + 1], max_tokens=1))
    scheduler.check_integrity()
    return LongRun(token_ids, sampled, num_cached, reason, block_table)


def sample_after(
    runner: CpuRunner, token_ids: Sequence[int], block_table: Sequence[int], chunk: int, computed: int = 0
) -> tuple[int, TokenLogprobs]:
    """Compute a sequence in chunks of this many tokens, whatever the blocks' borders, and sample after it."""
    request = greedy("direct", token_ids, max_tokens=1)
    rows: list[SampledToken] = []
    for begin in range(computed, len(token_ids), chunk):
        count = min(chunk, len(token_ids) - begin)
        is_last = begin + count == len(token_ids)
        run = ScheduledRequest(request, token_ids, begin, count, block_table, is_sampled=is_last)
        rows += runner.execute(SchedulerOutput((run,), ("direct",))).sampled
    (row,) = rows
    assert row.logprobs is not None
    return row.token_id, row.logprobs


def test_a_request_decodes_to_the_last_position_and_ends_for_length(long_run: LongRun) -> None:
    assert len(long_run.token_ids) == CONTEXT
    assert long_run.finish_reason is FinishReason.LENGTH
    assert len(set(long_run.block_table)) == NUM_BLOCKS


def test_prefixes_of_any_length_come_from_the_cache(long_run: LongRun) -> None:
    assert long_run.num_cached[100_000] == 100_000
    assert long_run.num_cached[8191] == 8192 - 16


def test_every_part_of_the_context_agrees_with_the_twin(checkpoint: Checkpoint, long_run: LongRun) -> None:
    positions = sorted({*CHECKED_POSITIONS, *range(CONTEXT - NUM_DECODED - 1, CONTEXT)})
    twin = Twin(checkpoint, inv_freq(checkpoint.config))
    for position, wanted in zip(positions, twin.logprobs(long_run.token_ids, positions), strict=True):
        token_id, logprobs = long_run.sampled[position]
        assert wanted[token_id] >= wanted.max() - TOLERANCE, position
        ids, values = zip(*logprobs.top, strict=True)
        assert len(ids) == NUM_LOGPROBS
        assert values == pytest.approx(wanted[list(ids)], abs=TOLERANCE), position


def test_the_twin_would_notice_frequencies_that_are_not_scaled(checkpoint: Checkpoint, long_run: LongRun) -> None:
    plain = dataclasses.replace(checkpoint.config, rope_freq_factors=None, rope_scaling=None)
    positions = [position for position in CHECKED_POSITIONS if position > 8000]
    for position, wrong in zip(
        positions, Twin(checkpoint, inv_freq(plain)).logprobs(long_run.token_ids, positions), strict=True
    ):
        ids, values = zip(*long_run.sampled[position][1].top, strict=True)
        assert np.abs(np.array(values) - wrong[list(ids)]).max() > 1, position


def test_neither_chunks_nor_blocks_change_a_bit(checkpoint: Checkpoint, long_run: LongRun) -> None:
    runner = loaded(checkpoint)
    blocks = np.random.default_rng(1).permutation(NUM_BLOCKS).tolist()
    position = 19_999
    assert sample_after(runner, long_run.token_ids[: position + 1], blocks, 300) == long_run.sampled[position]
    runner.close()
