"""The peer: llama.cpp, built natively from the source package `llama-cpp-python`, with its own tools and server.

Everything lands under `.venv-peers/` and is built once. Only that project's own programs are run: llama-bench,
llama-batched-bench, llama-quantize and llama-server.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

VERSION = "0.3.36"
HOME = Path(".venv-peers")
BUILD = HOME / "llama.cpp-build"
TARGETS = ("llama-bench", "llama-batched-bench", "llama-quantize", "llama-server")


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """Paths of the built programs."""

    bin: Path

    def quantize(self, source: Path, kind: str) -> Path:
        """The same weights requantised by llama.cpp itself; made once, kept under `.venv-peers/`."""
        target = HOME / f"{source.stem}.requantised-{kind}.gguf"
        if not target.exists():
            partial = target.with_suffix(".partial")
            subprocess.run(
                [self.bin / "llama-quantize", "--allow-requantize", source, partial, kind],
                check=True, capture_output=True,
            )  # fmt: skip
            partial.rename(target)
        return target

    def bench(self, model: Path, *, prompt: int, generate: int, threads: int, repetitions: int) -> dict[str, float]:
        """Best of flash attention on and off: prefill of `prompt` tokens, one decode stream, tok/s; 0: not run."""
        best = {"prefill": 0.0, "decode": 0.0}
        command = [
            str(self.bin / "llama-bench"), "-m", str(model), "-p", str(prompt), "-n", str(generate),
            "-t", str(threads), "-r", str(repetitions), "-fa", "0,1", "-o", "json",
        ]  # fmt: skip
        rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for row in rows:
            kind = "prefill" if row["n_prompt"] else "decode"
            best[kind] = max(best[kind], row["avg_ts"])
        return best

    def batched_decode(self, model: Path, *, streams: int, prompt: int, generate: int, threads: int) -> float:
        """Decode tok/s, all streams together, of llama.cpp's own offline batched decode."""
        best = 0.0
        for flash in ("on", "off"):
            command = [
                str(self.bin / "llama-batched-bench"), "-m", str(model), "-c", str(streams * (prompt + generate) + 256),
                "-b", "2048", "-ub", "512", "-npp", str(prompt), "-ntg", str(generate), "-npl", str(streams),
                "-t", str(threads), "-tb", str(threads), "-fa", flash, "--output-format", "jsonl",
            ]  # fmt: skip
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
            best = max(best, *(row["speed_tg"] for row in rows))
        return best

    def server_command(self, model: Path, *, port: int, streams: int, context: int, threads: int) -> list[str]:
        """llama.cpp's own server with continuous batching over `streams` slots."""
        return [
            str(self.bin / "llama-server"), "-m", str(model), "--host", "127.0.0.1", "--port", str(port),
            "-t", str(threads), "-tb", str(threads), "-np", str(streams), "-c", str(streams * context),
            "--no-webui", "-fa", "auto",
        ]  # fmt: skip


def ensure_llama_cpp() -> LlamaCpp:
    """Build llama.cpp for this machine if it is not there yet (about 10 minutes on two cores)."""
    bin_dir = BUILD / "bin"
    if all((bin_dir / target).exists() for target in TARGETS):
        return LlamaCpp(bin_dir)
    if shutil.which("cmake") is None:
        raise SystemExit("bench-peers builds llama.cpp and found no cmake: install cmake.")
    HOME.mkdir(exist_ok=True)
    print(f"Fetching llama-cpp-python {VERSION} (source package)", flush=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python",
         "--dest", str(HOME), f"llama-cpp-python=={VERSION}"],
        check=True,
    )  # fmt: skip
    archive = next(HOME.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(HOME, filter="data")
    source = HOME / f"llama_cpp_python-{VERSION}" / "vendor" / "llama.cpp"
    print("Building llama.cpp for this machine (about 10 minutes)", flush=True)
    configure = [
        "cmake", "-S", str(source), "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
        "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
        "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
    ]  # fmt: skip
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(BUILD), "-j", "2", "--target", *TARGETS], check=True)
    return LlamaCpp(bin_dir)
