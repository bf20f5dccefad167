"""An HTTP load run on our own server: TTFT, inter-token latency and throughput at 1, 4 and 16 streams.

Also tells what share of the wall time at the highest load was not spent inside the native call, from /metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path

from benchmarks.load import LoadResult, distinct_prompts, run_load
from benchmarks.servers import free_port, running_server


def metric(port: int, name: str) -> float:
    """The sum of one metric's samples."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def measure(port: int, streams: int, max_tokens: int, salt: str) -> tuple[LoadResult, float]:
    """One load, and the share of wall time outside the native call."""
    runner_before, started = metric(port, "tampu:runner_seconds_total"), time.perf_counter()
    prompts = distinct_prompts(max(4, 2 * streams), salt=salt)
    result = asyncio.run(run_load("127.0.0.1", port, prompts, streams=streams, max_tokens=max_tokens))
    wall_s = time.perf_counter() - started
    return result, 1 - (metric(port, "tampu:runner_seconds_total") - runner_before) / wall_s


def main() -> None:
    """Print the card and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--generate", type=int, default=96)
    args = parser.parse_args()
    port = free_port()
    command = [sys.executable, "-m", "tampu", "serve", "--port", str(port)]
    command += ["--model", args.model] if args.model else []
    command += ["--threads", str(args.threads)] if args.threads else []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with running_server([*command, "--data-dir", folder], port=port, ready_path="/ready", log=log):
            asyncio.run(run_load("127.0.0.1", port, distinct_prompts(2, salt="warm"), streams=1, max_tokens=8))
            rows = [measure(port, int(n), args.generate, salt=f"{n}-") for n in args.streams.split(",")]
    heads = ("tok/s", "TTFT p50", "TTFT p95", "ITL p50", "ITL p95", "not native")
    print(f"{'streams':>8}" + "".join(f"{head:>12}" for head in heads))
    for result, outside in rows:
        latencies = (result.ttft_p50_ms, result.ttft_p95_ms, result.itl_p50_ms, result.itl_p95_ms)
        cells = "".join(f"{ms:9.1f} ms" for ms in latencies)
        print(f"{result.streams:8}{result.output_tokens_per_s:12.1f}{cells}{outside:12.1%}")
    print(json.dumps({"benchmark": "online", "rows": [{**asdict(r), "outside_native": o} for r, o in rows]}))


if __name__ == "__main__":
    main()
