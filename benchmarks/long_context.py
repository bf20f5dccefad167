"""Decode time of one stream behind a short and a long context, against what the bytes of the KV cache explain.

    python -m benchmarks.make_random_llama /tmp/random-8b.gguf --type Q4_0 --layers 4
    python -m benchmarks.long_context --model /tmp/random-8b.gguf

The context is not computed: the KV memory is filled with one pattern, and a step computes the token after it through a
block table in random order. "Explained" is the additional KV bytes over the streaming read bandwidth, which is measured
between the rounds, so that both see the same neighbours on a shared machine. The fastest step of each counts.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from tampu._native import linear
from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.core.request import Request
from tampu.core.sampling_params import SamplingParams
from tampu.core.step import ScheduledRequest, SchedulerOutput
from tampu.model.bundled import bundled_model_path
from tampu.model.checkpoint import Checkpoint, open_checkpoint
from tampu.runner.cpu import CpuRunner

BLOCK_SIZE = 16
PATTERN = 0x2E66  # a tenth as a half; a tiny scale in the 8-bit cache
ROUNDS = 3


def decode_s(runner: CpuRunner, context: int, steps: int) -> float:
    """The fastest of `steps` steps that compute the token at position `context - 1`, in seconds."""
    blocks = random.Random(1).sample(range(runner.num_blocks()), -(-context // BLOCK_SIZE))
    token_ids = [17] * context
    request = Request("long", tuple(token_ids), SamplingParams(temperature=0.0, max_tokens=1), seed=0)
    step = SchedulerOutput((ScheduledRequest(request, token_ids, context - 1, 1, blocks, is_sampled=True),), ("long",))
    best = float("inf")
    for _ in range(steps):
        started = time.perf_counter()
        runner.execute(step)
        best = min(best, time.perf_counter() - started)
    return best


def measure(checkpoint: Checkpoint, dtype: str, arguments: argparse.Namespace) -> dict[str, float | str]:
    """One line of the card."""
    config = checkpoint.config
    num_blocks = -(-arguments.context // BLOCK_SIZE)
    f16_bytes = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    engine = EngineConfig(block_size=BLOCK_SIZE, kv_cache_bytes=int(1.2 * num_blocks * BLOCK_SIZE * f16_bytes))
    runner = CpuRunner(checkpoint, engine, CpuRunnerConfig(num_threads=arguments.threads, kv_cache_dtype=dtype))
    runner.load()
    runner.fill_kv_cache(PATTERN)
    token_bytes = runner.kv_cache_bytes / (runner.num_blocks() * BLOCK_SIZE)
    short_s = long_s = float("inf")
    bandwidth = 0.0
    for _ in range(ROUNDS):
        short_s = min(short_s, decode_s(runner, arguments.short, arguments.steps))
        long_s = min(long_s, decode_s(runner, arguments.context, arguments.steps))
        bandwidth = max(bandwidth, linear.stream_read_bytes_per_s(128 << 20, runner.num_threads, 1.0))
    runner.close()
    more_bytes = token_bytes * (arguments.context - arguments.short)
    return {
        "kv_cache_dtype": dtype,
        "short_ms": 1e3 * short_s,
        "long_ms": 1e3 * long_s,
        "kv_mb_per_token": token_bytes * arguments.context / 1e6,
        "explained_ms": 1e3 * (short_s + more_bytes / bandwidth),
        "kv_gb_per_s": more_bytes / (long_s - short_s) / 1e9,
        "stream_read_gb_per_s": bandwidth / 1e9,
    }


def main() -> None:
    """Print the card and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--short", type=int, default=1024)
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=8, help="in each of three rounds")
    parser.add_argument("--kv-cache-dtype", default="f16,q8")
    arguments = parser.parse_args()
    path = arguments.model or bundled_model_path()
    if path is None:
        raise SystemExit("the bundled model is not installed: run make serve once")
    results = []
    for dtype in arguments.kv_cache_dtype.split(","):
        checkpoint = open_checkpoint(path)
        results.append(measure(checkpoint, dtype, arguments))
        checkpoint.close()
    print(f"{path.name}: one stream, behind {arguments.short:,} and {arguments.context:,} tokens")
    for row in results:
        print(
            f"  {row['kv_cache_dtype']:4} {row['short_ms']:8.1f} ms {row['long_ms']:8.1f} ms"
            f"  (bytes explain {row['explained_ms']:.1f} ms)"
            f"  KV {row['kv_mb_per_token']:.0f} MB a token at {row['kv_gb_per_s']:.1f} GB/s,"
            f" streaming read {row['stream_read_gb_per_s']:.1f} GB/s"
        )
    print(json.dumps({"benchmark": "long_context", "model": path.name, "results": results}))


if __name__ == "__main__":
    main()
