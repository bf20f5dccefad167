"""Side by side with llama.cpp: same machine, same minutes, same file, same client. Prints a card with ratios.

Each measure is taken of both in turn, round after round, and the medians are compared, because a shared machine
drifts. The peer is taken at its best: flash attention on or off, and the better of the same file and the same weights
requantised to Q4_0. Nothing here knows who should win.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.llama_cpp import HOME, LlamaCpp, ensure_llama_cpp
from benchmarks.load import distinct_prompts, run_load, stream_completion
from benchmarks.servers import free_port, running_server

RESULTS = Path("benchmarks/results")


def last_json_line(command: list[str]) -> dict[str, Any]:
    """Run a benchmark of ours in its own process; its last line is JSON."""
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result


def ours_offline(model: Path, args: argparse.Namespace, streams: int) -> float:
    """tok/s of our engine offline: prefill for 0 streams, else decode."""
    command = [
        sys.executable, "-m", "benchmarks.offline", "--model", str(model), "--threads", str(args.threads),
        "--prompt", str(0 if streams else args.prompt), "--generate", str(args.generate),
        "--streams", str(streams or ""), "--repetitions", str(args.repetitions),
    ]  # fmt: skip
    (rate,) = last_json_line(command)["results"].values()
    return float(rate)


def peer_offline(llama: LlamaCpp, file: Path, args: argparse.Namespace, streams: int) -> float:
    """The same of llama.cpp at its best on one file."""
    if streams > 1:
        return llama.batched_decode(file, streams=streams, prompt=64, generate=args.generate, threads=args.threads)
    prompt, generate = (0, args.generate) if streams else (args.prompt, 0)
    rates = llama.bench(file, prompt=prompt, generate=generate, threads=args.threads, repetitions=args.repetitions)
    return rates["decode"] if streams else rates["prefill"]


def machine_limits(threads: int) -> dict[str, float]:
    """Streaming-read bandwidth (GB/s) and int8 dot-product peak (Gop/s), measured now."""
    from tampu._native import linear

    return {
        "read_gb_s": linear.stream_read_bytes_per_s(128 << 20, threads, 1.0) / 1e9,
        "int8_gop_s": linear.int8_dot_ops_per_s(threads, 0.5) / 1e9,
    }


async def http_measurements(port: int, streams: list[int], prompts_salt: str, max_tokens: int) -> dict[str, Any]:
    """The same load on any server: tok/s and latencies at each number of streams."""
    out: dict[str, Any] = {}
    await run_load("127.0.0.1", port, distinct_prompts(2, salt=f"w{prompts_salt}"), streams=1, max_tokens=8)
    for n in streams:
        prompts = distinct_prompts(max(3, n * 2), salt=f"{prompts_salt}-{n}-")
        out[str(n)] = asdict(await run_load("127.0.0.1", port, prompts, streams=n, max_tokens=max_tokens))
    return out


async def prefix_ttft(port: int, salt: str) -> dict[str, float]:
    """TTFT in ms of a prompt of about 2,000 tokens: cold, then with all but its last 100 tokens seen before."""
    words = distinct_prompts(60, salt=salt)
    head = "".join(words)[:8600]
    tail = " Then answer in one sentence: which of these subjects is the most useful one to know about, and why? " * 4

    async def ttft(prompt: str) -> tuple[float, int]:
        body = {"model": "@cf/meta/llama-3.1-8b-instruct-fast", "prompt": prompt, "max_tokens": 4, "temperature": 0,
                "stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}  # fmt: skip
        timeline = await stream_completion("127.0.0.1", port, body)
        return 1e3 * timeline.ttft_s, timeline.prompt_tokens

    cold, tokens = await ttft(head + tail)
    warm, _ = await ttft(head + tail.replace("useful", "surprising"))
    return {"cold_ms": cold, "warm_ms": warm, "prompt_tokens": float(tokens)}


def peak_rss_mb(pid: int) -> float:
    """Highest resident memory of a process so far, MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e3
    return 0.0


def http_round(llama: LlamaCpp, model: Path, peer_model: Path, args: argparse.Namespace, salt: str) -> dict[str, Any]:
    """One round over HTTP: our server, then llama.cpp's own, the same load on each."""
    streams, threads = args.http_streams, args.threads
    measured: dict[str, Any] = {}
    port = free_port()
    ours = [sys.executable, "-m", "tampu", "serve", "--model", str(model), "--port", str(port),
            "--threads", str(threads), "--max-num-seqs", str(max(16, *streams))]  # fmt: skip
    with running_server(ours, port=port, ready_path="/ready", log=HOME / "ours.log") as pid:
        measured["ours"] = asyncio.run(http_measurements(port, streams, salt, args.generate))
        measured["ours_prefix"] = asyncio.run(prefix_ttft(port, salt))
        measured["ours_peak_rss_mb"] = peak_rss_mb(pid)
    port = free_port()
    theirs = llama.server_command(peer_model, port=port, streams=max(streams), context=2600, threads=threads)
    with running_server(theirs, port=port, ready_path="/health", log=HOME / "llama-server.log") as pid:
        measured["peer"] = asyncio.run(http_measurements(port, streams, salt, args.generate))
        measured["peer_prefix"] = asyncio.run(prefix_ttft(port, salt))
        measured["peer_peak_rss_mb"] = peak_rss_mb(pid)
    return measured


def offline_round(llama: LlamaCpp, model: Path, requantised: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One round offline, measure by measure: ours, the peer on the same file, the peer on its fastest file."""
    row: dict[str, Any] = {"limits": machine_limits(args.threads), "ours": {}, "peer_same_file": {}, "peer_q4_0": {}}
    for streams in (0, *args.streams):
        key = f"decode_{streams}" if streams else "prefill"
        row["ours"][key] = ours_offline(model, args, streams)
        row["peer_same_file"][key] = peer_offline(llama, model, args, streams)
        if requantised != model:
            row["peer_q4_0"][key] = peer_offline(llama, requantised, args, streams)
    return row


def median_of(rounds: list[dict[str, Any]], *path: str) -> float:
    """Median over the rounds of one nested figure; 0 where a round lacks it."""
    values = []
    for entry in rounds:
        value: Any = entry
        for key in path:
            value = value.get(key, {}) if isinstance(value, dict) else {}
        if isinstance(value, int | float):
            values.append(float(value))
    return statistics.median(values) if values else 0.0


def card(offline: list[dict[str, Any]], http: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the card: what, ours, peer on the same file, peer at its best, ratio to the best."""
    rows = []
    for key in ("prefill", *(f"decode_{n}" for n in args.streams)):
        same, q4 = median_of(offline, "peer_same_file", key), median_of(offline, "peer_q4_0", key)
        rows.append({"what": f"offline {key} tok/s", "ours": median_of(offline, "ours", key), "same_file": same,
                     "best": max(same, q4)})  # fmt: skip
    rows += [
        {"what": f"HTTP {n} streams tok/s", "ours": median_of(http, "ours", str(n), "output_tokens_per_s"),
         "same_file": None, "best": median_of(http, "peer", str(n), "output_tokens_per_s")}
        for n in args.http_streams
    ]  # fmt: skip
    for label, key in (("TTFT ~2,000 tokens cold ms", "cold_ms"), ("TTFT ~1,900 of them seen ms", "warm_ms")):
        rows.append({"what": label, "ours": median_of(http, "ours_prefix", key), "same_file": None,
                     "best": median_of(http, "peer_prefix", key), "lower_is_better": True})  # fmt: skip
    rows.append({"what": "server peak memory MB", "ours": median_of(http, "ours_peak_rss_mb"), "same_file": None,
                 "best": median_of(http, "peer_peak_rss_mb"), "lower_is_better": True})  # fmt: skip
    rows = [row for row in rows if row["ours"] or row["best"]]  # what was measured
    for row in rows:
        ours, best = row["ours"], row["best"]
        if ours and best:
            row["ratio"] = best / ours if row.get("lower_is_better") else ours / best
    return rows


def print_card(rows: list[dict[str, Any]], limits: dict[str, float], title: str) -> None:
    """The card for people. A ratio above 1 means we win, below 1 that we lose."""
    print(f"\n{title}")
    print(f"machine limits now: read {limits['read_gb_s']:.1f} GB/s, int8 {limits['int8_gop_s']:.0f} Gop/s")
    print(f"{'':34} {'ours':>9} {'same file':>10} {'peer best':>10} {'ratio':>7}")
    for row in rows:
        same = f"{row['same_file']:10.1f}" if row["same_file"] else f"{'-':>10}"
        ratio = f"{row['ratio']:6.2f}x" if "ratio" in row else f"{'-':>7}"
        verdict = "" if row.get("ratio", 1.0) >= 1.0 else "  (slower than the peer)"
        print(f"{row['what']:34} {row['ours']:9.1f} {same} {row['best']:10.1f} {ratio}{verdict}")


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """A bar for each ratio, the peer as the line at 1. Needs matplotlib; says so when it is missing."""
    try:
        import matplotlib
    except ImportError:
        print("(no plot: pip install matplotlib)")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in rows if "ratio" in row]
    figure, axis = plt.subplots(figsize=(8, 0.45 * len(shown) + 1.2))
    colours = ["#2f7d4f" if row["ratio"] >= 1 else "#b5483a" for row in shown]
    axis.barh([row["what"] for row in shown], [row["ratio"] for row in shown], color=colours)
    axis.axvline(1.0, color="black", linewidth=1)
    axis.invert_yaxis()
    axis.set_xlabel("times llama.cpp at its best (right of the line: Tampu is better)")
    axis.set_title(title, fontsize=10)
    for i, row in enumerate(shown):
        axis.text(row["ratio"], i, f" {row['ratio']:.2f}", va="center", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    print(f"plot: {path}")


def parse_arguments() -> argparse.Namespace:
    """Flags of `make bench-peers ARGS=…`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="GGUF file; default the bundled model")
    parser.add_argument("--shape", choices=["llama-3.1-8b"], help="random weights of this shape instead of a model")
    parser.add_argument("--quantization", choices=["Q4_0", "Q4_K_M"], default="Q4_0", help="with --shape")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--prompt", type=int, help="prefill length; default 512 (128 with --shape)")
    parser.add_argument("--generate", type=int, help="new tokens a stream; default 96 (24 with --shape)")
    parser.add_argument("--no-http", action="store_true")
    args = parser.parse_args()
    is_large = args.shape is not None
    args.prompt = args.prompt or (128 if is_large else 512)
    args.generate = args.generate or (24 if is_large else 96)
    args.streams = [1, 8] if is_large else [1, 4, 16]
    args.http_streams = [1, 4, 16]
    args.no_http = args.no_http or is_large
    return args


def subject(args: argparse.Namespace) -> Path:
    """The file to measure, made now when it is a shape."""
    if args.shape:
        path = HOME / f"{args.shape}-random-{args.quantization}.gguf"
        if not path.exists():
            HOME.mkdir(exist_ok=True)
            subprocess.run(
                [sys.executable, "-m", "benchmarks.make_random_llama", "--shape", args.shape,
                 "--type", args.quantization, str(path)],
                check=True,
            )  # fmt: skip
        return path
    if args.model:
        return Path(args.model)
    from tampu.model.bundled import bundled_model_path

    path_or_none = bundled_model_path()
    if path_or_none is None:
        raise SystemExit("the bundled model is not installed: run make serve once")
    return path_or_none


def main() -> None:
    """Run the rounds, print the card, write JSON and plot into benchmarks/results/."""
    args = parse_arguments()
    llama = ensure_llama_cpp()
    model = subject(args)
    requantised = model if args.shape and args.quantization == "Q4_0" else llama.quantize(model, "Q4_0")
    offline, http = [], []
    for i in range(args.rounds):
        print(f"round {i + 1} of {args.rounds}: offline", flush=True)
        offline.append(offline_round(llama, model, requantised, args))
        if not args.no_http:
            print(f"round {i + 1} of {args.rounds}: HTTP", flush=True)
            http.append(http_round(llama, model, requantised, args, salt=f"r{i}-"))
    rows = card(offline, http, args)
    limits = {key: median_of(offline, "limits", key) for key in ("read_gb_s", "int8_gop_s")}
    now = datetime.datetime.now(datetime.UTC)
    title = f"{model.name}, {args.threads} threads, {args.rounds} rounds, {now:%Y-%m-%d}, {cpu_name()}"
    print_card(rows, limits, title)
    RESULTS.mkdir(parents=True, exist_ok=True)
    stem = RESULTS / f"peers-{args.shape + '-' + args.quantization if args.shape else model.stem}-{now:%Y%m%d-%H%M%S}"
    record = {"title": title, "limits": limits, "rows": rows, "offline": offline, "http": http}
    Path(f"{stem}.json").write_text(json.dumps(record, indent=1))
    plot(rows, Path(f"{stem}.svg"), title)
    print(json.dumps({"benchmark": "peers", "rows": rows, "limits": limits}))


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
