"""Calls JavaScript functions, each call in a process of its own that can do nothing but compute.

A process serves one call and ends: nothing a function does survives it. One process is kept ready, so that a call does
not wait for a start. Whatever goes wrong inside (an exception, too much time, memory or output, no function at all)
comes back as text for the model to read; only misuse from our side raises.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tampu.core.chat import ToolSpec
from tampu.core.errors import ConfigError, EngineDeadError, OverloadedError
from tampu.sandbox.jsdoc import describe_function

_START_TIMEOUT_S = 30.0  # a busy machine may take long to start a process; the function's own time begins afterwards
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What one call may use."""

    wall_time_s: float = 1.0
    memory_bytes: int = 64_000_000
    max_output_bytes: int = 64_000  # of the result's JSON text
    max_code_bytes: int = 64_000
    max_arguments_bytes: int = 1_000_000
    max_concurrent_calls: int = 2
    max_waiting_calls: int = 64

    def __post_init__(self) -> None:
        for setting in ("wall_time_s", "memory_bytes", "max_output_bytes", "max_concurrent_calls"):
            if getattr(self, setting) <= 0:
                raise ConfigError(setting, "must be more than 0")


@dataclass(frozen=True, slots=True)
class _Worker:
    """A started process."""

    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it, whatever it does, and take its exit status: no process is left over. Idempotent."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


class Sandbox:
    """May be used from any event loop; `close` from any thread."""

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        spec = importlib.util.find_spec("_quickjs")
        if spec is None or spec.origin is None:
            raise ConfigError("functions", "the package quickjs-ng is not installed: run `make serve` or install it")
        self.limits = limits if limits is not None else SandboxLimits()
        self._extension = spec.origin
        self._threads = ThreadPoolExecutor(self.limits.max_concurrent_calls, "tampu-sandbox")
        self._reading_thread = ThreadPoolExecutor(1, "tampu-describe")
        self._lock = threading.Lock()  # guards what follows
        self._spare: _Worker | None = None
        self._busy: set[_Worker] = set()
        self._num_calls = 0
        self._is_closed = False
        self._is_filtered: bool | None = None

    @property
    def is_filtered(self) -> bool | None:
        """Whether the last process had the system-call filter; None before the first call."""
        return self._is_filtered

    async def describe(self, code: str, name: str = "") -> ToolSpec:
        """The tool that this function is for a model: description and parameters (a JSON schema), read from a leading
        JSDoc comment, else from the destructured argument. Never runs the code.

        Reading takes up to some tens of milliseconds, so it happens in a thread. Raises InvalidRequestError with the
        field "code" when there is too much to read, and EngineDeadError after `close`.
        """
        with self._lock:
            if self._is_closed:
                raise EngineDeadError("The sandbox is closed.")
            reading = self._reading_thread.submit(describe_function, code, name)
        return await asyncio.wrap_future(reading)

    async def call(self, code: str, arguments: Mapping[str, Any], name: str = "") -> str:
        """Call the function with one object. Returns the JSON text of its result, or of `{"error": "..."}`.

        `name` finds the function among several declarations. Raises OverloadedError when too many calls wait, and
        EngineDeadError after `close`.
        """
        if len(code.encode("utf-8", "surrogatepass")) > self.limits.max_code_bytes:
            return error_text(f"The function's code is larger than {self.limits.max_code_bytes // 1000} kB.")
        job = json.dumps({"code": code, "name": name, "arguments": json.dumps(dict(arguments))}).encode("ascii")
        if len(job) > self.limits.max_code_bytes * 6 + self.limits.max_arguments_bytes:
            return error_text(f"The arguments are larger than {self.limits.max_arguments_bytes // 1000} kB.")
        with self._lock:
            if self._is_closed:
                raise EngineDeadError("The sandbox is closed.")
            if self._num_calls >= self.limits.max_concurrent_calls + self.limits.max_waiting_calls:
                raise OverloadedError(f"{self._num_calls} function calls are waiting: try again later.")
            self._num_calls += 1
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, job)

    def close(self) -> None:
        """Kill what runs and what waits to run; calls under way end with an error text. Idempotent."""
        with self._lock:
            self._is_closed = True
            spare, self._spare = self._spare, None
            busy = tuple(self._busy)
        for worker in busy:
            worker.process.kill()
        if spare is not None:
            spare.kill()
        self._threads.shutdown(wait=True)
        self._reading_thread.shutdown(wait=True, cancel_futures=True)

    # -- a sandbox thread ---------------------------------------------------------------------------------------------

    def _call(self, job: bytes) -> str:
        try:
            worker = self._take_worker()
            if worker is None:
                return error_text("The server is shutting down.")
            try:
                return self._converse(worker, job)
            finally:
                with self._lock:
                    self._busy.discard(worker)
                worker.kill()
                self._start_spare()
        finally:
            with self._lock:
                self._num_calls -= 1

    def _take_worker(self) -> _Worker | None:
        """The spare process or a new one; None when closed meanwhile."""
        with self._lock:
            worker, self._spare = self._spare, None
        worker = worker or self._start()
        with self._lock:
            if not self._is_closed:
                self._busy.add(worker)
                return worker
        worker.kill()
        return None

    def _start_spare(self) -> None:
        if not self._keep(None):
            return
        worker = self._start()
        if not self._keep(worker):
            worker.kill()

    def _keep(self, worker: _Worker | None) -> bool:
        """Make this process the spare one, or with None ask whether one is wanted."""
        with self._lock:
            is_wanted = self._spare is None and not self._is_closed
            if is_wanted:
                self._spare = worker
            return is_wanted

    def _start(self) -> _Worker:
        """A process without environment, files, terminal or a way to import anything of ours."""
        limits = self.limits
        command = [
            sys.executable,
            *("-I", "-S", "-B"),
            str(Path(__file__).with_name("worker.py")),
            self._extension,
            str(limits.memory_bytes),
            str(limits.max_output_bytes),
            str(int(limits.wall_time_s) + 2),
        ]
        return _Worker(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                env={},
                close_fds=True,
                start_new_session=True,  # a Ctrl-C in the terminal is the server's business
            )
        )

    def _converse(self, worker: _Worker, job: bytes) -> str:
        """Readiness, the job, the answer: each with its time limit."""
        head = _read_line(worker, time.monotonic() + _START_TIMEOUT_S)
        if not head.startswith(b"ready"):
            return error_text("The sandbox could not start.")
        self._is_filtered = head == b"ready filtered"
        deadline = time.monotonic() + self.limits.wall_time_s
        if not _write_all(worker, job, deadline):
            return error_text("The sandbox did not take the call.")
        # An answer's JSON may write every byte of the result as six characters.
        answer = _read_all(worker, deadline, 6 * self.limits.max_output_bytes + 20_000)
        if answer is None:
            return error_text(f"The function ran longer than {self.limits.wall_time_s:g} s and was stopped.")
        if not answer and self._is_closed:
            return error_text("The server is shutting down.")
        return self._read_answer(answer)

    def _read_answer(self, answer: bytes) -> str:
        """The worker's word is not trusted: what is not JSON text within the limit is an error."""
        try:
            fields = json.loads(answer)
            if "error" in fields:
                return error_text(str(fields["error"]))
            result = str(fields["result"])
            json.loads(result)
        except (ValueError, KeyError, TypeError, RecursionError):
            return error_text("The function ended the process it ran in.")
        if len(result.encode("utf-8", "surrogatepass")) > self.limits.max_output_bytes:
            return error_text(f"The function's result is larger than {self.limits.max_output_bytes // 1000} kB.")
        return result


def error_text(message: str) -> str:
    """What the model sees instead of a result."""
    return json.dumps({"error": message.encode("utf-8", "replace").decode("utf-8")}, ensure_ascii=False)


def _wait(stream: Any, deadline: float, *, for_writing: bool = False) -> bool:
    """False when the deadline passed first."""
    poll = select.poll()  # unlike select(), any file number
    poll.register(stream, select.POLLOUT if for_writing else select.POLLIN)
    remaining_s = deadline - time.monotonic()
    return remaining_s > 0 and bool(poll.poll(remaining_s * 1000))


def _read_line(worker: _Worker, deadline: float) -> bytes:
    """The first line, without its end; the worker writes nothing more before it has its job."""
    stream = worker.process.stdout
    assert stream is not None
    line = b""
    while not line.endswith(b"\n") and len(line) < 100:
        if not _wait(stream, deadline):
            return b""
        part = os.read(stream.fileno(), 100)
        if not part:
            return b""
        line += part
    return line.rstrip(b"\n")


def _write_all(worker: _Worker, data: bytes, deadline: float) -> bool:
    """Write and close."""
    stream = worker.process.stdin
    assert stream is not None
    os.set_blocking(stream.fileno(), False)
    try:
        while data:
            if not _wait(stream, deadline, for_writing=True):
                return False
            data = data[os.write(stream.fileno(), data) :]
        stream.close()
    except OSError:
        return False
    return True


def _read_all(worker: _Worker, deadline: float, max_bytes: int) -> bytes | None:
    """Everything until the worker closes its output, cut at `max_bytes`; None when the deadline passed first."""
    stream = worker.process.stdout
    assert stream is not None
    data = b""
    while len(data) <= max_bytes:
        if not _wait(stream, deadline):
            return None
        part = os.read(stream.fileno(), _READ_BYTES)
        if not part:
            break
        data += part
    return data
