"""Gop/s and GB/s of the linear kernels, per shape and number of rows, against limits measured in the same run, for one
instruction set after the other; and milliseconds a row of the sampler.

Limits: streaming read of memory, and a loop of nothing but 8-bit dot products (where the machine has AVX-512 VNNI),
both on as many threads. Weights are random; a pass with few rows takes them from memory, as decoding does, and one with
many rows repeats one matrix, as a prefill does within a layer. Multiply and add count as two operations. The sampler
draws from rows of Llama 3's vocabulary on one thread; its time is that of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tampu import _native
from tampu._native import linear

ROWS = (1, 2, 4, 8, 16, 64, 512)
DECODE_ROWS = 16
FOOTPRINT_BYTES = 128 << 20  # of all copies of one matrix together, beyond the caches


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    qtype: str
    k: int
    n: int
    fine_share: float = 0.0  # of the groups of activations, how many keep 16 bits


BUNDLED = (
    Shape("qkv", "Q4_1", 576, 960),
    Shape("o", "Q4_1", 576, 576),
    Shape("gate+up", "Q4_1", 576, 3072),
    Shape("down", "Q4_1", 1536, 576),
    Shape("head", "Q8_0", 576, 49152, 0.25),
)
LLAMA_8B = (
    *(
        Shape(name, qtype, k, n)
        for qtype in ("Q4_0", "Q4_K")
        for name, k, n in (("qkv", 4096, 6144), ("o", 4096, 4096), ("gate+up", 4096, 28672), ("down", 14336, 4096))
    ),
    Shape("head", "Q6_K", 4096, 128256, 0.25),
)
SHAPES = {"bundled": BUNDLED, "llama-3.1-8b": LLAMA_8B}


@dataclass(frozen=True, slots=True)
class Measurement:
    shape: str
    qtype: str
    k: int
    n: int
    fine_share: float
    rows: int
    gops: float
    gbytes_per_s: float
    quantise_share: float  # time of quantising the rows, relative to the multiplication


def random_weights(qtype: str, n: int, k: int) -> bytes:
    """Bytes of n weight rows whose scales are ordinary numbers (denormal or infinite ones would be timed instead)."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[qtype]]
    rng = np.random.default_rng(0)
    distinct = min(n, 512)
    raw = rng.integers(0, 256, (distinct, k // block, size), dtype=np.uint8)
    scales = (rng.standard_normal((distinct, k // block, 2)) * 0.01).astype(np.float16).view(np.uint8)
    scales = scales.reshape(distinct, k // block, 4)
    if qtype == "Q6_K":
        raw[..., 208:] = scales[..., :2]
    else:
        width = 2 if qtype in ("Q8_0", "Q4_0") else 4
        raw[..., :width] = scales[..., :width]
    rows = raw.reshape(distinct, -1)
    return np.resize(rows, (n, rows.shape[1])).tobytes()


def measure(shape: Shape, isa: str, threads: int, seconds: float) -> list[Measurement]:
    """All row counts of one shape."""
    data = random_weights(shape.qtype, shape.n, shape.k)
    groups = np.arange(shape.k // 32)
    is_fine = (groups * shape.fine_share) % 1 < shape.fine_share
    fine_groups = is_fine.astype(np.uint8).tobytes() if shape.fine_share else b""
    layers = [linear.Layer([(shape.qtype, data, shape.n)], shape.k, isa, "int8", fine_groups)]
    while len(layers) * layers[0].bytes < FOOTPRINT_BYTES:
        layers.append(linear.Layer([(shape.qtype, data, shape.n)], shape.k, isa, "int8", fine_groups))
    results = []
    for rows in ROWS:
        if shape.name == "head" and rows > DECODE_ROWS:  # only sampled rows ever reach it
            continue
        used = layers if rows <= DECODE_ROWS else layers[:1]
        multiply_s, quantise_s = linear.bench(used, rows, threads, seconds)
        operations = 2.0 * rows * shape.n * shape.k
        results.append(
            Measurement(
                shape.name, shape.qtype, shape.k, shape.n, shape.fine_share, rows,
                operations / multiply_s / 1e9, layers[0].bytes / multiply_s / 1e9, quantise_s / multiply_s,
            )
        )  # fmt: skip
    return results


def limits(threads: int) -> tuple[float, float]:
    """(GB/s of streaming read, Gop/s of 8-bit dot products)."""
    stream = linear.stream_read_bytes_per_s(FOOTPRINT_BYTES, threads, 1.0) / 1e9
    return stream, linear.int8_dot_ops_per_s(threads, 0.5) / 1e9


VOCAB_SIZE = 128_256
SAMPLING: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "no filter": {},
    "top_k 50": {"top_k": 50},
    "top_p 0.9": {"top_p": 0.9},
    "top_k 40, top_p 0.9, min_p 0.05, temperature 0.8": {"top_k": 40, "top_p": 0.9, "min_p": 0.05, "temperature": 0.8},
}


def sampling_rows() -> dict[str, npt.NDArray[np.float32]]:
    """A model's usual row, one without a favourite, and the worst: everything is about as likely."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(VOCAB_SIZE).astype(np.float32)
    usual = noise * np.float32(2.5)
    usual[rng.integers(0, VOCAB_SIZE, 30)] += np.linspace(8, 22, 30, dtype=np.float32)
    return {"usual": usual, "broad": noise * np.float32(2.5), "flat": noise * np.float32(0.1)}


def time_sampler(isa: str, seconds: float) -> list[dict[str, str | float]]:
    """Best milliseconds a row, by kind of row and parameters."""
    count = 8
    results: list[dict[str, str | float]] = []
    for kind, row in sampling_rows().items():
        for name, given in SAMPLING.items():
            numbers: dict[str, Any] = {
                "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
                "frequency_penalty": 0.0, "presence_penalty": 0.0, **given,
            }  # fmt: skip
            state = _native.SamplingState(
                vocab_size=VOCAB_SIZE, num_prompt_tokens=1, seed=1, num_logprobs=-1, logit_bias=[], **numbers
            )
            best, begin = float("inf"), time.thread_time()
            while time.thread_time() - begin < seconds:
                rows = np.tile(row, (count, 1))
                start = time.thread_time()
                _native.sample(rows, [state] * count, list(range(count)), [None] * count, isa)
                best = min(best, time.thread_time() - start)
            results.append({"row": kind, "parameters": name, "ms": round(best / count * 1e3, 4)})
    return results


def share(value: float, limit: float) -> str:
    return f"{100 * value / limit:3.0f} %" if limit else "  n/a"


def print_card(results: list[Measurement], stream: float, peak: float) -> None:
    print(f"{'layer':8} {'format':6} {'K':>6} {'N':>7} {'rows':>5} {'Gop/s':>7} {'of peak':>8} {'GB/s':>6} "
          f"{'of stream':>9} {'quantise':>9}")  # fmt: skip
    for m in results:
        print(f"{m.shape:8} {m.qtype:6} {m.k:6} {m.n:7} {m.rows:5} {m.gops:7.0f} {share(m.gops, peak):>8} "
              f"{m.gbytes_per_s:6.1f} {share(m.gbytes_per_s, stream):>9} {100 * m.quantise_share:7.1f} %")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--isa", choices=[*linear.available_isas(), "all"], default="all")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=0.3, help="per measurement")
    args = parser.parse_args()
    shapes = BUNDLED + LLAMA_8B if args.shapes == "all" else SHAPES[args.shapes]

    isas = [isa for isa in linear.available_isas() if isa != "portable"] or ["portable"]
    runs = []
    for isa in isas if args.isa == "all" else [args.isa]:
        before = limits(args.threads)
        results = [m for shape in shapes for m in measure(shape, isa, args.threads, args.seconds)]
        after = limits(args.threads)
        # A shared machine's limits move during the run; the better of both ends is the fairer denominator.
        stream, peak = max(before[0], after[0]), max(before[1], after[1])
        print(f"{isa}, {args.threads} threads, {platform.processor() or platform.machine()}")
        print(f"limits: streaming read {stream:.1f} GB/s, 8-bit dot products (AVX-512) {peak:.0f} Gop/s")
        print_card(results, stream, peak)
        sampler = time_sampler(isa, args.seconds)
        print(f"sampler, {VOCAB_SIZE} tokens, one thread:")
        for s in sampler:
            print(f"  {s['ms']:7.3f} ms  {s['row']:6}  {s['parameters']}")
        runs.append(
            {
                "isa": isa, "stream_gbytes_per_s": round(stream, 2), "int8_dot_gops": round(peak, 1),
                "results": [asdict(m) for m in results], "sampler": sampler,
            }
        )  # fmt: skip
    print(json.dumps({"benchmark": "kernels", "threads": args.threads, "runs": runs}))


if __name__ == "__main__":
    main()
