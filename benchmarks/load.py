"""A small HTTP load generator for streamed completions: closed loop, N streams at a time, bounded in count.

Talks to any server with `POST /v1/completions` in OpenAI's streaming form, so that two engines meet the same client.
Raw asyncio streams, because on a two-core machine a heavy client would be part of what is measured.
TTFT is from sending the request to the first non-empty piece of text; ITL is the gap between pieces;
tokens are what the server's own `usage` says.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Timeline:
    """One streamed answer; times are seconds of `time.perf_counter`."""

    sent: float = 0.0
    pieces: list[float] = field(default_factory=list)
    done: float = 0.0
    completion_tokens: int = 0
    prompt_tokens: int = 0
    text: str = ""

    @property
    def ttft_s(self) -> float:
        """Seconds to the first piece of text."""
        return self.pieces[0] - self.sent


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What one load showed; latencies in milliseconds."""

    streams: int
    requests: int
    output_tokens_per_s: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    itl_p50_ms: float
    itl_p95_ms: float
    tpot_ms: float


async def stream_completion(host: str, port: int, body: dict[str, Any]) -> Timeline:
    """Send one request and read its stream to the end. Raises RuntimeError on any status but 200."""
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer benchmark\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    timeline = Timeline()
    try:
        timeline.sent = time.perf_counter()
        writer.write(head.encode() + payload)
        await writer.drain()
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{status.decode().strip()}: {(await reader.read(2000)).decode(errors='replace')}")
        pieces: list[str] = []
        while line := await reader.readline():
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            frame = json.loads(line[6:])
            text = "".join(choice.get("text") or "" for choice in frame.get("choices", ()))
            if text:
                timeline.pieces.append(time.perf_counter())
                pieces.append(text)
            usage = frame.get("usage")
            if usage:
                timeline.completion_tokens = usage["completion_tokens"]
                timeline.prompt_tokens = usage["prompt_tokens"]
        timeline.done = time.perf_counter()
        timeline.text = "".join(pieces)
    finally:
        writer.close()
    if not timeline.pieces:
        raise RuntimeError("the server sent no text")
    return timeline


async def run_load(
    host: str, port: int, prompts: list[str], *, streams: int, max_tokens: int, extra: dict[str, Any] | None = None
) -> LoadResult:
    """Send every prompt once, `streams` at a time, greedy and with `ignore_eos`."""
    queue = list(prompts)
    timelines: list[Timeline] = []

    async def worker() -> None:
        while queue:
            body = {
                "model": "@cf/meta/llama-3.1-8b-instruct-fast",
                "prompt": queue.pop(0),
                "max_tokens": max_tokens,
                "temperature": 0,
                "stream": True,
                "ignore_eos": True,
                "stream_options": {"include_usage": True},
                **(extra or {}),
            }
            timelines.append(await stream_completion(host, port, body))

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(streams)))
    elapsed = time.perf_counter() - started
    gaps = sorted(b - a for t in timelines for a, b in zip(t.pieces, t.pieces[1:], strict=False))
    ttfts = sorted(t.ttft_s for t in timelines)
    tpots = [(t.done - t.pieces[0]) / max(1, t.completion_tokens - 1) for t in timelines]
    return LoadResult(
        streams=streams,
        requests=len(timelines),
        output_tokens_per_s=sum(t.completion_tokens for t in timelines) / elapsed,
        ttft_p50_ms=1e3 * statistics.median(ttfts),
        ttft_p95_ms=1e3 * ttfts[min(len(ttfts) - 1, int(0.95 * len(ttfts)))],
        itl_p50_ms=1e3 * statistics.median(gaps),
        itl_p95_ms=1e3 * gaps[int(0.95 * len(gaps))],
        tpot_ms=1e3 * statistics.mean(tpots),
    )


SUBJECTS = (
    "the history of bridges in mountain valleys", "how bread rises", "why the sky is blue at noon and red at dusk",
    "the rules of a card game for four", "growing tomatoes on a balcony", "how a bicycle stays upright",
    "the life of a lighthouse keeper", "what makes a good library", "the first steps of learning the violin",
    "how rivers carve canyons", "keeping bees in a small garden", "the design of a paper aeroplane",
    "the uses of wool through the ages", "why languages change", "how to read a weather map",
    "the making of a wooden chair", "tides and the moon", "writing a letter to an old friend",
    "the care of a cast-iron pan", "the work of a night-train conductor",
)  # fmt: skip


def distinct_prompts(count: int, *, salt: str = "") -> list[str]:
    """Prompts of about 75 tokens, no two with a common beginning (so that no prefix cache helps)."""
    prompts = []
    for i in range(count):
        subject = SUBJECTS[i % len(SUBJECTS)]
        prompts.append(
            f"{salt}{i * 7919 % 100003}: Write a clear and friendly explanation of {subject} for a reader who has "
            f"never thought about it before. Begin with a concrete scene, then give three reasons with one example "
            f"each, mention a common misunderstanding, and end with a practical suggestion that the reader can try "
            f"on the same day. Use short sentences.\n\n"
        )
    return prompts
