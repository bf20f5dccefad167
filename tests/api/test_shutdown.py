"""A server that is told to end while it answers: what fits into the drain time is finished, the rest ends in words."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from checkpoints import LLAMA3_SPECIALS, TINY, random_weights, write_gguf


@contextmanager
def serving(folder: Path, drain_timeout: float) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server of a tiny model on the slow runner, and a client."""
    model = write_gguf(folder / "tiny.gguf", TINY, random_weights(TINY), specials=LLAMA3_SPECIALS)
    command = [sys.executable, "-m", "tampu", "serve", "--port", "0", "--model", str(model), "--runner", "reference",
               "--drain-timeout", str(drain_timeout), "--data-dir", str(folder)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = next(found[0] for line in process.stdout if (found := re.search(r"http://[0-9.:]+", line)))
        with httpx.Client(base_url=url, timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.communicate(timeout=30)


def told_to_end(process: subprocess.Popen[str], client: httpx.Client, *, max_tokens: int, n: int = 1) -> str:
    """What is left of a stream when the server is told to end after its first frame."""
    body = {"model": "@cf/meta/llama-3.1-8b-instruct-fast", "prompt": "a", "stream": True, "ignore_eos": True,
            "max_tokens": max_tokens, "n": n}  # fmt: skip
    with client.stream("POST", "/v1/completions", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        return "\n".join(lines)


def test_what_does_not_fit_into_the_drain_time_ends_with_an_error_frame(tmp_path: Path) -> None:
    with serving(tmp_path, 0) as (process, client):
        rest = told_to_end(process, client, max_tokens=480, n=16)  # some seconds of work
        errors = process.communicate(timeout=30)[1]
    assert '"error":{"message":"AiError: Request was aborted"' in rest
    assert rest.rstrip().endswith("data: [DONE]")
    assert "Traceback" not in errors
    assert process.returncode in (0, -signal.SIGTERM)


def test_what_fits_is_finished(tmp_path: Path) -> None:
    with serving(tmp_path, 60) as (process, client):
        rest = told_to_end(process, client, max_tokens=8)
        process.communicate(timeout=30)
    assert rest.rstrip().endswith("data: [DONE]")
    assert '"completion_tokens":8' in rest
