"""The sandbox: what functions may be, what they get back, and everything they must not be able to do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tampu.core.chat import ToolSpec
from tampu.core.errors import ConfigError, EngineDeadError, OverloadedError
from tampu.sandbox import sandbox as sandbox_module
from tampu.sandbox import worker
from tampu.sandbox.sandbox import Sandbox, SandboxLimits

WORKER = Path(worker.__file__)


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    sandbox = Sandbox(SandboxLimits(wall_time_s=20))  # these calls take milliseconds, but the machine may be busy
    yield sandbox
    sandbox.close()


@pytest.fixture
def sandbox(shared: Sandbox) -> Sandbox:
    return shared


async def result(sandbox: Sandbox, code: str, arguments: dict[str, Any] | None = None, name: str = "") -> Any:
    return json.loads(await sandbox.call(code, arguments or {}, name))


async def error(sandbox: Sandbox, code: str, arguments: dict[str, Any] | None = None) -> str:
    answer = await result(sandbox, code, arguments)
    assert isinstance(answer, dict)
    assert answer.keys() == {"error"}, answer
    return str(answer["error"])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def children() -> set[int]:
    """Process ids whose parent this process is."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid():
                found.add(int(entry.name))
    return found


# -- what a function may be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "({a, b}) => a + b",
        "async ({a, b}) => a + b",
        "args => args.a + args.b;",
        "function sum({a, b}) { return a + b }",
        "async function sum({a, b}) { await null; return a + b } ",
        "/** Adds. */\nfunction sum(args) { return args.a + args.b; };",
        "// note\nconst sum = ({a, b}) => { return a + b };",
        "const plus = (x, y) => x + y;\nconst sum = ({a, b}) => plus(a, b);",
        "function plus(x, y) { return x + y }\nfunction sum({a, b}) { return plus(a, b) }",
        "/* x */ export default async function ({a, b}) { return a + b }",
        "export function sum({a, b}) { return a + b }",
        "(function ({a, b}) { return a + b })",
        "({a, b}) => ({then(done) { done(a + b) }})",
        "({a, b}) => a + b // the end",
    ],
)
async def test_every_way_to_write_a_function(sandbox: Sandbox, code: str) -> None:
    assert await result(sandbox, code, {"a": 2, "b": 3}, "sum") == 5


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("undefined", None),
        ("null", None),
        ("NaN", None),
        ("'é京🦙\\ud800'", "é京🦙\ud800"),
        ("[1, undefined, () => 1]", [1, None, None]),
        ("({a: {b: [true]}, c: undefined})", {"a": {"b": [True]}}),
        ("new Date(0)", "1970-01-01T00:00:00.000Z"),
        ("new Map([[1, 2]])", {}),
    ],
)
async def test_results_are_json(sandbox: Sandbox, value: str, expected: Any) -> None:
    text = await sandbox.call(f"() => ({value})", {})
    assert json.loads(text) == expected
    text.encode("utf-8")


async def test_arguments_arrive_as_they_are(sandbox: Sandbox) -> None:
    arguments = {
        "text": '"quoted" \\ \u2028 \' ` ${x} </script> 京 🦙',
        "deep": [{"a": None}],
        "__proto__": {"x": 1},
        "n": 1.5,
    }
    assert await result(sandbox, "(args) => args", arguments) == arguments


async def test_logging_is_harmless(sandbox: Sandbox) -> None:
    assert await result(sandbox, "() => { console.log('x'); console.error('y'); return 1 }") == 1


# -- errors the model sees --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("() => { throw new TypeError('bad city') }", "TypeError: bad city"),
        ("async () => { throw new Error('later') }", "Error: later"),
        ("() => { throw 'plain' }", "plain"),
        ("() => { throw {message: 'like an error'} }", "Error: like an error"),
        ("() => { throw null }", "threw null"),
        ("() => { throw {get message() { throw 1 }} }", "cannot be shown"),
        ("() => missing", "ReferenceError: missing is not defined"),
        ("({a}) => a.b.c", "TypeError"),
        ("42", "not a function"),
        ("", "not a function"),
        ("() => {", "SyntaxError"),
        ("() => 10n", "TypeError"),
        ("() => { const a = {}; a.a = a; return a }", "circular"),
        ("() => new Promise(() => {})", "never settles"),
        ("() => fetch('http://example.com')", "fetch is not available"),
        ("async () => new Promise((done) => setTimeout(done, 10))", "setTimeout is not available"),
        ("() => { throw new Error('x'.repeat(100000)) }", "Error: xxx"),
    ],
)
async def test_errors_are_told_in_one_sentence(sandbox: Sandbox, code: str, expected: str) -> None:
    text = await error(sandbox, code)
    assert expected in text
    assert len(text) <= 2000


# -- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "() => { while (true) {} }",
        "() => { while (true) { try { while (true) {} } catch {} finally { continue } } }",
        "async () => { while (true) await null }",
        "() => /(a+)+$/.test('a'.repeat(50) + 'b')",
        "() => Array(1e9).join('x')",
        "() => ({ toJSON() { while (true) {} } })",
        "() => ({ then() { while (true) {} } })",
        "while (true) {}",
    ],
    ids=["loop", "uncatchable", "microtasks", "regex", "native loop", "toJSON", "then", "top level"],
)
async def test_too_much_time(code: str) -> None:
    sandbox = Sandbox(SandboxLimits(wall_time_s=0.2))
    assert await error(sandbox, code) == "The function ran longer than 0.2 s and was stopped."
    await asyncio.to_thread(sandbox.close)


@pytest.mark.parametrize(
    "code",
    [
        "() => { const a = []; while (true) a.push(new Array(1000).fill(1)) }",
        "() => 'x'.repeat(1e8)",
        "() => new ArrayBuffer(1e9)",
        "() => { let s = 'x'; while (true) s += s }",
        "() => { const a = []; while (true) { try { a.push('y'.repeat(1e6) + a.length) } catch { return 'caught' } } }",
    ],
)
async def test_too_much_memory(code: str) -> None:
    sandbox = Sandbox(SandboxLimits(wall_time_s=20))
    answer = await result(sandbox, code)
    assert answer == "caught" or any(reason in answer["error"] for reason in ("64 MB of memory", "string too long"))
    await asyncio.to_thread(sandbox.close)


@pytest.mark.parametrize(
    "code",
    [
        "() => 'x'.repeat(64000)",
        "() => Array(40000).fill(1)",
        "() => '京'.repeat(30000)",
        "() => '\\ud800'.repeat(20000)",
    ],
)
async def test_too_much_output(sandbox: Sandbox, code: str) -> None:
    assert await error(sandbox, code) == "The function's result is larger than 64 kB."


async def test_output_up_to_the_limit(sandbox: Sandbox) -> None:
    assert await result(sandbox, "() => 'x'.repeat(63998)") == "x" * 63998
    assert await result(sandbox, "() => '京'.repeat(21000)") == "京" * 21000


async def test_too_much_input(sandbox: Sandbox) -> None:
    assert "code is larger than 64 kB" in await error(sandbox, "() => '" + "x" * 64_000 + "'")
    assert "arguments are larger than 1000 kB" in await error(sandbox, "() => 1", {"a": "x" * 2_000_000})


@pytest.mark.parametrize(
    "code",
    [
        "() => { (function f() { f() })() }",
        "() => { let a = []; for (let i = 0; i < 1e5; i++) a = [a]; return a }",
        "() => { let a = null; for (let i = 0; i < 1e5; i++) a = {a}; return a }",
        "() => JSON.parse('['.repeat(1e5))",
        "() => new RegExp('('.repeat(1e5))",
        "() => eval('('.repeat(3e5))",
        "() => { const p = new Proxy({}, {get: (t, k, r) => r[k]}); return p.x }",
    ],
)
async def test_deep_recursion(sandbox: Sandbox, code: str) -> None:
    assert await error(sandbox, code)


# -- isolation --------------------------------------------------------------------------------------------------------


async def test_nothing_of_a_host_is_there(sandbox: Sandbox) -> None:
    names = ["process", "require", "module", "std", "os", "bjs", "scriptArgs", "Deno", "Bun", "WebAssembly", "print"]
    names += ["global", "window", "self", "performance", "SharedArrayBuffer", "Atomics", "__filename", "load", "Worker"]
    code = "() => [" + ", ".join(f"typeof {name}" for name in names) + "]"
    assert await result(sandbox, code) == ["undefined"] * len(names)


@pytest.mark.parametrize(
    "code",
    [
        "() => import('os')",
        "() => import('std')",
        "() => import('/etc/passwd')",
        "() => import('file:///etc/passwd')",
        "() => Function('return import(\"fs\")')()",
    ],
)
async def test_modules_cannot_be_loaded(sandbox: Sandbox, code: str) -> None:
    assert "could not load" in await error(sandbox, code)


async def test_the_function_sees_only_its_own_realm(sandbox: Sandbox) -> None:
    """The constructor chain ends in the realm's own Function, whose scope has nothing more to offer."""
    code = "(args) => args.constructor.constructor('return typeof process + typeof globalThis.os')()"
    assert await result(sandbox, code) == "undefinedundefined"


@pytest.mark.parametrize(
    "trick",
    [
        "JSON.stringify = () => 'not json'",
        "JSON = null",
        "Promise.prototype.then = null; Promise.resolve = null; Promise = null",
        "Object.prototype.toString = () => { throw 1 }; String = null; Error = null",
        "Array.prototype.filter = () => ['eval']; Reflect.apply = null; Set.prototype.has = null",
        "Object.defineProperty(Object.prototype, 'then', {get() { return undefined }})",
        "const g = globalThis, O = Object; O.setPrototypeOf(g, null); O.getOwnPropertyNames(g).map((k) => delete g[k])",
        "RegExp.prototype.exec = null; String.prototype.slice = () => 'x'.repeat(1e6)",
    ],
)
async def test_changed_built_ins_change_nothing_outside(sandbox: Sandbox, trick: str) -> None:
    assert await result(sandbox, f"() => {{ {trick}; return {{a: [1]}} }}") == {"a": [1]}


async def test_a_call_leaves_nothing_to_the_next(sandbox: Sandbox) -> None:
    code = "() => { globalThis.n = (globalThis.n || 0) + 1; Array.prototype.mine = 1; return [n, typeof mine] }"
    assert [await result(sandbox, code) for _ in range(3)] == [[1, "undefined"]] * 3


def confined(code: str) -> str:
    """Run Python in a process that gave up its rights as the worker does; returns what it printed."""
    prelude = f"import sys, os; sys.path.insert(0, {str(WORKER.parent)!r}); import socket, worker\n"
    limits = "print(worker.confine(64_000_000, 3), flush=True)\n"
    command = [sys.executable, "-B", "-c", prelude + limits + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def test_a_process_that_broke_out_of_the_engine_could_still_do_nothing() -> None:
    attempts = {
        "read a file": "open('/etc/passwd')",
        "list a folder": "os.listdir('/')",
        "write a file": "os.open('/tmp/x', os.O_CREAT | os.O_WRONLY)",
        "connect": "socket.socket()",
        "fork": "os.fork()",
        "execute": "os.execv('/bin/true', ['true'])",
        "signal": f"os.kill({os.getpid()}, 0)",
        "raise limits": "__import__('resource').setrlimit(7, (99, 99))",
        "duplicate": "os.dup(1)",
    }
    code = "".join(
        f"try:\n    {attempt}\n    print('did', {name!r}, flush=True)\nexcept BaseException as e:\n"
        f"    print('could not', {name!r}, flush=True)\n"
        for name, attempt in attempts.items()
    )
    lines = confined(code).splitlines()
    assert lines[0] == "True", "the system-call filter is on"
    assert lines[1:] == [f"could not {name}" for name in attempts]


def test_memory_is_limited_for_the_whole_process() -> None:
    assert "MemoryError" in confined(
        "try:\n    bytearray(400_000_000)\nexcept MemoryError:\n    print('MemoryError')\n"
    )


def test_the_worker_gets_no_environment_and_no_files(tmp_path: Path) -> None:
    """Seen from outside, while the process waits for its call."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    with secret.open() as held:
        os.set_inheritable(held.fileno(), True)
        sandbox = Sandbox()
        sandbox._start_spare()
        spare = sandbox._spare
        assert spare is not None
        assert spare.process.stdout is not None
        assert spare.process.stdout.readline().startswith(b"ready")
        process = Path(f"/proc/{spare.process.pid}")
        assert (process / "environ").read_bytes() == b""
        assert os.readlink(process / "cwd") == "/"
        files = sorted(int(entry.name) for entry in (process / "fd").iterdir())
        assert files == [0, 1, 2]
        assert os.readlink(process / "fd" / "2") == "/dev/null"
        sandbox.close()


# -- processes --------------------------------------------------------------------------------------------------------


async def test_no_process_is_left_over() -> None:
    before = children()
    sandbox = Sandbox(SandboxLimits(wall_time_s=0.2))
    await asyncio.gather(
        *(sandbox.call(code, {}) for code in ["() => 1", "() => { while (1) {} }", "() => missing"] * 2)
    )
    assert children() != before, "one is kept ready"
    await asyncio.to_thread(sandbox.close)
    assert children() == before
    with pytest.raises(EngineDeadError):
        await sandbox.call("() => 1", {})
    sandbox.close()


async def test_a_killed_process_is_an_error_text(sandbox: Sandbox) -> None:
    sandbox = Sandbox()
    sandbox._start_spare()
    spare = sandbox._spare
    assert spare is not None
    os.kill(spare.process.pid, signal.SIGKILL)
    spare.process.wait()
    assert await error(sandbox, "() => 1") == "The sandbox could not start."
    assert await result(sandbox, "() => 1") == 1, "the next call gets a new process"
    await asyncio.to_thread(sandbox.close)


async def test_close_ends_a_running_call() -> None:
    sandbox = Sandbox(SandboxLimits(wall_time_s=60))
    call = asyncio.create_task(sandbox.call("() => { while (true) {} }", {}))
    await asyncio.to_thread(wait_until, lambda: bool(sandbox._busy))
    await asyncio.to_thread(sandbox.close)
    assert "shutting down" in await call or "could not start" in await call


async def test_calls_run_side_by_side_and_too_many_are_refused() -> None:
    limits = SandboxLimits(wall_time_s=0.5, max_concurrent_calls=2, max_waiting_calls=2)
    sandbox = Sandbox(limits)
    calls = [asyncio.create_task(sandbox.call("() => { while (1) {} }", {})) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await sandbox.call("() => 1", {})
    assert len(await asyncio.gather(*calls)) == 4
    assert await result(sandbox, "() => 1") == 1
    await asyncio.to_thread(sandbox.close)


async def test_the_event_loop_is_never_blocked() -> None:
    sandbox = Sandbox(SandboxLimits(wall_time_s=0.5))
    loop_thread = threading.get_ident()
    threads: list[int] = []
    original = sandbox._call

    def recorded(job: bytes) -> str:
        threads.append(threading.get_ident())
        return original(job)

    sandbox._call = recorded  # type: ignore[method-assign]
    ticks = 0
    call = asyncio.create_task(sandbox.call("() => { while (true) {} }", {}))
    while not call.done():
        ticks += 1
        await asyncio.sleep(0.001)
    assert ticks > 3
    assert loop_thread not in threads
    await asyncio.to_thread(sandbox.close)


def test_wrong_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="wall_time_s"):
        SandboxLimits(wall_time_s=0)


async def test_sources_are_read_in_a_thread_of_their_own(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> None:
    readers = []

    def read(code: str, name: str) -> ToolSpec:
        readers.append(threading.current_thread())
        return ToolSpec(name)

    monkeypatch.setattr(sandbox_module, "describe_function", read)
    assert (await sandbox.describe("o => 1", "f")).name == "f"
    assert readers
    assert readers[0] is not threading.current_thread()


async def test_a_closed_sandbox_reads_nothing() -> None:
    sandbox = Sandbox()
    sandbox.close()
    with pytest.raises(EngineDeadError):
        await sandbox.describe("o => 1")
