"""Prefill and decode tok/s of this engine without HTTP: scheduler and runner in one loop, as its thread runs them.

Prefill: time of the steps that compute one prompt of `--prompt` tokens (and sample once). Decode: tokens sampled per
second while N streams, each behind a `--context` prompt, are all decoding. The median of `--repetitions` runs.
`--constrained` adds streams whose answers are held to a JSON schema, in turns with free ones, and what they cost more:
in wall time, and in processor time, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.core.request import Request
from tampu.core.sampling_params import SamplingParams
from tampu.model.bundled import bundled_model_path
from tampu.model.checkpoint import open_checkpoint
from tampu.runner.cpu import CpuRunner
from tampu.sampling.uniform import uniform
from tampu.scheduler.scheduler import Scheduler
from tampu.text.grammar import Grammar, GrammarCompiler
from tampu.text.tokenizer import load_tokenizer

# No answer of a few hundred tokens satisfies it, so every stream goes on to its last token.
ENDLESS_SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
        "required": ["name", "count"],
    },
}


def prompt_ids(num_tokens: int, vocab_size: int, salt: int) -> tuple[int, ...]:
    """Random token ids, so that no prefix repeats."""
    return tuple(int(uniform(salt, i) * (vocab_size - 1000)) for i in range(num_tokens))


def prefill_steps(streams: int, num_prompt_tokens: int, max_num_batched_tokens: int) -> int:
    """Enough steps to compute all prompts beside the tokens of those that decode already."""
    return -(-streams * num_prompt_tokens // (max_num_batched_tokens - streams)) + streams


class Loop:
    """The engine's loop without its thread."""

    def __init__(self, runner: CpuRunner, config: EngineConfig, max_model_len: int, vocab_size: int) -> None:
        self.runner = runner
        self.scheduler = Scheduler(config, runner.num_blocks(), max_model_len)
        self.max_num_batched_tokens = config.max_num_batched_tokens
        self.vocab_size = vocab_size
        self.num_requests = 0
        self.runner_s = 0.0

    def add(self, num_prompt_tokens: int, max_tokens: int, grammar: Grammar | None = None) -> None:
        """Queue one greedy request with a prompt nobody sent before."""
        self.num_requests += 1
        prompt = prompt_ids(num_prompt_tokens, self.vocab_size, self.num_requests + time.time_ns() % 2**40)
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        constraint = None if grammar is None else grammar.new_constraint(max_tokens)
        self.scheduler.add(Request(str(self.num_requests), prompt, params, seed=0, constraint=constraint))

    def step(self) -> int:
        """One step; the number of tokens sampled in it."""
        work = self.scheduler.schedule()
        started = time.perf_counter()
        output = self.runner.execute(work)
        self.runner_s += time.perf_counter() - started
        self.scheduler.update(work, output)
        self.scheduler.take_outputs()
        return len(output.sampled)

    def prefill(self, num_tokens: int) -> float:
        """tok/s of one prompt, first token included."""
        self.add(num_tokens, 1)
        started = time.perf_counter()
        while self.scheduler.has_work:
            self.step()
        return num_tokens / (time.perf_counter() - started)

    def decode(self, streams: int, num_prompt_tokens: int, generate: int, grammar: Grammar | None = None) -> float:
        """tok/s of all streams together while every one of them is decoding."""
        return self.decode_rates(streams, num_prompt_tokens, generate, grammar)[0]

    def decode_rates(
        self, streams: int, num_prompt_tokens: int, generate: int, grammar: Grammar | None = None
    ) -> tuple[float, float]:
        """The same per second of wall time and per second of processor time."""
        # The first stream must not end before the last begins.
        max_tokens = generate + prefill_steps(streams, num_prompt_tokens, self.max_num_batched_tokens)
        for _ in range(streams):
            self.add(num_prompt_tokens, max_tokens, grammar)
        while self.step() < streams:
            pass
        started, started_cpu, done, sampled = time.perf_counter(), time.process_time(), 0, streams
        while sampled == streams and done < generate * streams:
            sampled = self.step()
            done += sampled
        seconds, seconds_cpu = time.perf_counter() - started, time.process_time() - started_cpu
        for request_id in range(self.num_requests - streams + 1, self.num_requests + 1):
            self.scheduler.abort(str(request_id))
        while self.scheduler.has_work:
            self.step()
        return done / seconds, done / seconds_cpu


def constrained_cost(loop: Loop, grammar: Grammar, streams: int, args: argparse.Namespace) -> dict[str, float]:
    """tok/s of constrained streams, and by what share they take longer than free ones, in pairs of runs."""
    loop.decode(streams, args.context, 8, grammar)  # warm
    pairs = []
    for _ in range(args.repetitions):
        free = loop.decode_rates(streams, args.context, args.generate)
        pairs.append((free, loop.decode_rates(streams, args.context, args.generate, grammar)))
    return {
        "tokens_per_s": statistics.median(held[0] for _, held in pairs),
        "wall_cost": statistics.median(free[0] / held[0] for free, held in pairs) - 1,
        "processor_cost": statistics.median(free[1] / held[1] for free, held in pairs) - 1,
    }


def main() -> None:
    """Print the card and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--isa", default=None)
    parser.add_argument("--activations", default="int8")
    parser.add_argument("--kv-cache-dtype", default="f16")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill run; 0: none")
    parser.add_argument("--generate", type=int, default=96)
    parser.add_argument("--context", type=int, default=64, help="prompt length of the decode runs")
    parser.add_argument("--streams", default="1,4,16", help="decode runs; empty: none")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--constrained", action="store_true", help="also streams held to a JSON schema")
    args = parser.parse_args()
    path = args.model or bundled_model_path()
    if path is None:
        raise SystemExit("the bundled model is not installed: run make serve once")
    streams = [int(n) for n in args.streams.split(",") if n]
    checkpoint = open_checkpoint(path)
    most = max([*streams, 1])
    longest = max(64, args.prompt, args.context + args.generate + prefill_steps(most, args.context, 512)) + 8
    capacity = most * (longest + 16) + 128
    kv_bytes_per_token = 4 * checkpoint.config.num_hidden_layers * checkpoint.config.num_key_value_heads
    kv_bytes_per_token *= checkpoint.config.head_dim
    config = EngineConfig(
        max_num_seqs=max(16, most),
        max_num_batched_tokens=512,
        kv_cache_bytes=int(1.3 * capacity) * kv_bytes_per_token,
    )
    cpu = CpuRunnerConfig(
        num_threads=args.threads, isa=args.isa, activations=args.activations, kv_cache_dtype=args.kv_cache_dtype
    )
    runner = CpuRunner(checkpoint, config, cpu)
    started = time.perf_counter()
    runner.load()
    load_s = time.perf_counter() - started
    loop = Loop(runner, config, longest + 64, checkpoint.config.vocab_size)
    loop.prefill(64)  # warm
    results = {}
    if args.prompt:
        results["prefill"] = statistics.median(loop.prefill(args.prompt) for _ in range(args.repetitions))
    for n in streams:
        runs = [loop.decode(n, args.context, args.generate) for _ in range(args.repetitions)]
        results[f"decode_{n}"] = statistics.median(runs)
    held: dict[int, dict[str, float]] = {}
    if args.constrained:
        grammar = GrammarCompiler(load_tokenizer(checkpoint.tokenizer_spec)).json_schema(ENDLESS_SCHEMA)
        held = {n: constrained_cost(loop, grammar, n, args) for n in streams}
        results |= {f"constrained_{n}_{name}": value for n in streams for name, value in held[n].items()}
    weights = f"{checkpoint.name}, {checkpoint.quantization}"
    print(f"{weights}, {runner.isa}, {runner.num_threads} threads, loaded in {load_s:.2f} s")
    if args.prompt:
        print(f"  prefill {args.prompt:5} tokens  {results['prefill']:9.1f} tok/s")
    for n in streams:
        print(f"  decode {n:3} streams      {results[f'decode_{n}']:9.1f} tok/s")
    for n, figures in held.items():
        cost = f"{figures['wall_cost']:+.1%} wall, {figures['processor_cost']:+.1%} processor time"
        print(f"  decode {n:3} JSON streams {figures['tokens_per_s']:9.1f} tok/s  ({cost})")
    print(json.dumps({"benchmark": "offline", "load_s": load_s, "isa": runner.isa, "results": results}))
    runner.close()
    checkpoint.close()


if __name__ == "__main__":
    main()
