"""The process that runs one function call and ends. Started as a script, isolated, never imported by the server.

Order matters: load the engine, report readiness, give up every right that can be given up, and only then read the
code. What is left afterwards: reading standard input, writing standard output, memory up to the limit. On Linux on
x86-64 and ARM64 a system-call filter enforces that; elsewhere resource limits and the engine's own emptiness (no files,
no network, no modules, no host objects) have to do.

Arguments: path of the `_quickjs` extension, memory limit in bytes, output limit in bytes, CPU seconds.
Input: a JSON object {code, name, arguments}. Output: a line "ready" with the filter's state, then a JSON object
{result: JSON text} or {error: text}.
"""

import ctypes
import importlib.machinery
import importlib.util
import json
import os
import platform
import resource
import struct
import sys
from typing import Any

_STACK_BYTES = 512 << 10
_ADDRESS_SPACE_MARGIN_BYTES = 96 << 20  # Python's own copies of input and output

# Runs in the function's own realm before its code does, so everything it uses later is taken now: whatever the code
# does to built-in objects afterwards changes nothing here.
_DRIVER = r"""
(() => {
  "use strict";
  const { parse, stringify } = JSON, { apply } = Reflect, { resolve } = Promise, { then } = Promise.prototype;
  const evaluate = eval, TString = String, TypeOf = (v) => typeof v, P = Promise, Fail = Error, Syntax = SyntaxError;
  const define = Object.defineProperty, own = Object.getOwnPropertyNames, matches = RegExp.prototype.exec;
  const filter = Array.prototype.filter, has = Set.prototype.has, root = globalThis;
  const { replace, slice } = String.prototype;
  const declared = /(?:^|[\n;}])\s*(?:const|let|var)\s+([A-Za-z_$][\w$]*)\s*=/g, identifier = /^[A-Za-z_$][\w$]*$/;
  const exported = /^((?:\s|\/\*[\s\S]*?\*\/|\/\/[^\n]*\n)*)export\s+(?:default\s+)?/;
  const quiet = () => undefined, join = Array.prototype.join;
  const glue = (a, b) => apply(join, [a, b], [""]); // the binding cannot read the ropes that + makes of long strings
  const console = {};
  for (const name of ["log", "info", "warn", "error", "debug", "trace"]) console[name] = quiet;
  define(root, "console", { value: console, writable: true, configurable: true });
  for (const name of ["fetch", "setTimeout", "setInterval", "XMLHttpRequest", "WebSocket"]) {
    const text = name + " is not available: functions run without network and timers";
    const absent = function () { throw new Fail(text); };
    define(root, name, { value: absent, writable: true, configurable: true });
  }
  for (const name of ["performance", "SharedArrayBuffer", "Atomics"]) delete root[name];
  const known = new Set(own(root));

  // Several forms are taken: an expression, a declaration, `export default`, helpers beside the function itself.
  const functionOf = (source, name) => {
    const code = apply(replace, source, [exported, "$1"]);
    try {
      return evaluate("(" + code + "\n)");
    } catch (error) {
      if (!(error instanceof Syntax)) throw error;
    }
    // The name asked for, then what is declared, last first: helpers come before what uses them.
    const names = [];
    for (let found; names.length < 50 && (found = apply(matches, declared, [code])); ) names[names.length] = found[1];
    if (apply(matches, identifier, [name])) names[names.length] = name;
    for (let i = names.length - 1; i >= 0; i--) {
      const found = evaluate(code + "\n;typeof " + names[i] + " === 'function' ? " + names[i] + " : undefined");
      if (TypeOf(found) === "function") return found;
    }
    const value = evaluate(code);
    if (TypeOf(value) === "function") return value;
    const fresh = apply(filter, own(root), [(n) => !apply(has, known, [n]) && TypeOf(root[n]) === "function"]);
    return fresh.length === 1 ? root[fresh[0]] : undefined;
  };

  const describe = (error) => {
    try {
      if (error === null) return "null";
      if (TypeOf(error) === "object" && "message" in error) {
        const name = "name" in error ? TString(error.name) : "Error";
        return glue(name + ": ", TString(error.message));
      }
      return TypeOf(error) === "string" ? error : TString(error);
    } catch {
      return "an error that cannot be shown";
    }
  };

  // "" while the promise is open, then E and an error, L for a result that is too long, R and its JSON text.
  let outcome = "", limit = 0;
  const fail = (error) => { outcome = glue("E", apply(slice, describe(error), [0, 2000])); };
  const succeed = (value) => {
    try {
      const text = stringify(value);
      outcome = text === undefined ? "Rnull" : text.length > limit ? "L" : glue("R", text);
    } catch (error) {
      fail(error);
    }
  };

  return (code, name, args, maxOutput) => {
    if (code === null) return outcome;
    limit = maxOutput;
    try {
      const f = functionOf(code, name);
      if (TypeOf(f) !== "function") {
        outcome = "Ecode is not a function: write one function that takes one object";
        return outcome;
      }
      const promise = apply(resolve, P, [f(parse(args))]);
      apply(then, promise, [succeed, fail]);
    } catch (error) {
      fail(error);
    }
    return outcome;
  };
})()
"""


def run(quickjs: Any, job: dict[str, Any], memory_bytes: int, max_output_bytes: int) -> dict[str, str]:
    """One call in a fresh realm."""
    context = quickjs.Context()
    context.set_memory_limit(memory_bytes)
    context.set_max_stack_size(_STACK_BYTES)
    try:
        drive = context.eval(_DRIVER)
        outcome = drive(job["code"], job["name"], job["arguments"], max_output_bytes)
        while not outcome and context.execute_pending_job():
            outcome = drive(None, "", "", 0)
    except quickjs.StackOverflow:
        return {"error": "RangeError: Maximum call stack size exceeded"}
    except quickjs.JSException as error:
        text = str(error).split("\n", 1)[0]
        if text in ("null", "") or "out of memory" in text:
            return {"error": _out_of_memory(memory_bytes)}
        return {"error": text[:2000]}
    if not outcome:
        return {"error": "The function returned a promise that never settles."}
    kind, text = outcome[0], outcome[1:]
    if kind == "E":
        if "out of memory" in text:
            text = _out_of_memory(memory_bytes)
        elif text == "null":  # what the engine throws when it has no memory left for an error
            text = f"The function threw null, or used more than {memory_bytes // 1_000_000} MB of memory."
        return {"error": text}
    if kind == "L" or len(text.encode("utf-8", "surrogatepass")) > max_output_bytes:
        return {"error": f"The function's result is larger than {max_output_bytes // 1000} kB."}
    return {"result": text}


def _out_of_memory(memory_bytes: int) -> str:
    return f"The function used more than {memory_bytes // 1_000_000} MB of memory and was stopped."


def confine(memory_bytes: int, cpu_seconds: int) -> bool:
    """Give up rights, for ever. True when the system-call filter is on."""
    with open("/proc/self/statm", encoding="ascii") as file:
        address_space = int(file.read().split()[0]) * resource.getpagesize()
    address_space += memory_bytes + _ADDRESS_SPACE_MARGIN_BYTES
    limits = {
        resource.RLIMIT_AS: address_space,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    return filter_system_calls()


# System calls that remain, by machine: (audit architecture, numbers). In this order: read write close fstat mmap
# mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn lseek sched_yield mremap madvise getpid exit gettimeofday
# getrusage times sigaltstack futex clock_gettime clock_getres exit_group getrandom, and time where it exists.
_ALLOWED = {
    "x86_64": (0xC000003E, "0 1 3 5 9 10 11 12 13 14 15 8 24 25 28 39 60 96 98 100 131 202 228 229 231 318 201"),
    "aarch64": (
        0xC00000B7,
        "63 64 57 80 222 226 215 214 134 135 139 62 124 216 233 172 93 169 165 153 132 98 113 114 94 278",
    ),
}


def filter_system_calls() -> bool:
    """Every other system call fails with EPERM from now on. False where there is no such filter."""
    machine = _ALLOWED.get(platform.machine()) if sys.platform == "linux" else None
    if machine is None:
        return False
    architecture, numbers = machine[0], [int(number) for number in machine[1].split()]
    load_word, jump_if_equal, give_back = 0x20, 0x15, 0x06
    permit, refuse, kill = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # errno 1 = EPERM
    program = [
        (load_word, 0, 0, 4),  # architecture
        (jump_if_equal, 1, 0, architecture),
        (give_back, 0, 0, kill),
        (load_word, 0, 0, 0),  # number of the system call
    ]
    for index, number in enumerate(numbers):
        program.append((jump_if_equal, len(numbers) - index, 0, number))
    program += [(give_back, 0, 0, refuse), (give_back, 0, 0, permit)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    set_no_new_privileges, set_seccomp, with_filter = 38, 22, 2
    if prctl(set_no_new_privileges, 1, None, 0, 0) != 0:
        return False
    return bool(prctl(set_seccomp, with_filter, ctypes.addressof(header), 0, 0) == 0)


def main(arguments: list[str]) -> None:
    """Serve one call and end without clean-up."""
    extension, memory_bytes, max_output_bytes, cpu_seconds = arguments[0], *map(int, arguments[1:4])
    loader = importlib.machinery.ExtensionFileLoader("_quickjs", extension)
    spec = importlib.util.spec_from_file_location("_quickjs", extension, loader=loader)
    assert spec is not None
    quickjs = importlib.util.module_from_spec(spec)
    loader.exec_module(quickjs)
    quickjs.Context().eval("1")
    json.dumps(json.loads('{"a": "\\u00e9"}'))  # loads what is loaded on first use
    is_filtered = confine(memory_bytes, cpu_seconds)
    os.write(1, b"ready filtered\n" if is_filtered else b"ready\n")
    parts = []
    while part := os.read(0, 1 << 20):
        parts.append(part)
    try:
        answer = run(quickjs, json.loads(b"".join(parts)), memory_bytes, max_output_bytes)
        data = json.dumps(answer).encode("ascii")
    except MemoryError:
        data = json.dumps({"error": _out_of_memory(memory_bytes)}).encode("ascii")
    while data:
        data = data[os.write(1, data) :]
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
