"""The Makefile: which address `make serve` asks for, and which Python it takes. Nothing is installed here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Without what an outer `make test` hands down to its children."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))}


def serve_command(*words: str, **variables: str) -> str:
    """The line that `make serve` would end with."""
    done = subprocess.run(
        ["make", "--dry-run", "serve", *words],
        cwd=ROOT, env={**environment(), **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return " ".join(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ((), "exec .venv/bin/tampu serve"),
        (("PORT=9000",), "exec .venv/bin/tampu serve --port 9000"),
        (("HOST=::1", "PORT=9000"), "exec .venv/bin/tampu serve --host ::1 --port 9000"),
        (("ARGS=--mock",), "exec .venv/bin/tampu serve --mock"),
    ],
)
def test_the_address_is_taken_from_the_command_only(words: tuple[str, ...], command: str) -> None:
    # Without --host and --port, TAMPU_HOST and TAMPU_PORT count.
    assert serve_command(*words, HOST="x86_64-conda-linux-gnu", PORT="1") == command


@pytest.mark.parametrize(("python", "said"), [("no-such-python", "found no no-such-python"), ("false", "is older")])
def test_a_python_that_is_missing_or_too_old_is_named(python: str, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), ".venv/.python", f"PYTHON={python}"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Tampu needs Python 3.11 or newer" in done.stdout
    assert said in done.stdout
    assert not (tmp_path / ".venv").exists()
