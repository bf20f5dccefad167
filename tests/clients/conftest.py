"""A real server in a process of its own, and what the tests need to run unmodified Node tools against it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from node_tools import NODE_FOLDER, NodeTools, free_port, stop_group

_START_SECONDS = 60
_MOCK_SCRIPT = Path(__file__).with_name("mock-script.yaml")


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Origin of a running `tampu serve --mock`; stopped at the end."""
    port, log = free_port(), tmp_path_factory.mktemp("tampu") / "server.log"
    command = [sys.executable, "-m", "tampu.cli.main", "serve", "--port", str(port)]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*command, "--mock", "--mock-script", str(_MOCK_SCRIPT)],
            env={name: value for name, value in os.environ.items() if not name.startswith("TAMPU_")},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, log)
        yield url
    finally:
        stop_group(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait for /ready; fails with the server's own words when it ended."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended at once: {log.read_text(encoding='utf-8')}"
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the server was not ready after {_START_SECONDS} s: {log.read_text(encoding='utf-8')}")


@pytest.fixture(scope="session")
def node(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> NodeTools:
    """Node and the installed packages, pointed at the running server."""
    assert (NODE_FOLDER / "node_modules").is_dir(), "the Node packages are not installed: run `make install-node`"
    return NodeTools(server_url, tmp_path_factory.mktemp("node-home"))
