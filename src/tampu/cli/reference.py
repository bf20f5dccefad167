"""Writes docs/cli.md from the commands themselves, so that the page cannot go stale (`make docs`; a test compares)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

_HEAD = """# Command line

Made from the commands themselves by `make docs`; do not edit.

`make serve` installs the command as `.venv/bin/tampu`; after `source .venv/bin/activate` it is `tampu`, as written
here.

An option wins over its environment variable. A switch is turned on by `1` or `true` and off by `0` or `false`; several
values of one variable stand apart by blanks.
"""


def reference() -> str:
    """The whole page as Markdown."""
    from tampu.cli.main import app

    root = typer.main.get_command(app)
    return _HEAD + "".join(_section(root, ("tampu",)))


def _section(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name in sorted(command.commands):
            yield from _section(command.commands[name], (*path, name))
        return
    yield f"\n## `{' '.join(path)}`\n\n{(command.help or '').strip()}\n\n"
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    if arguments:
        yield "| argument | |\n|---|---|\n"
        for parameter in arguments:
            yield f"| `{parameter.name.upper()}` | {_cell(parameter.help)} |\n"
        yield "\n"
    if options:
        yield "| option | environment | default | |\n|---|---|---|---|\n"
        for parameter in options:
            flags = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))
            default = "required" if parameter.required else _default(parameter.default)
            variable = f"`{parameter.envvar}`" if parameter.envvar else ""
            yield f"| {flags} | {variable} | {default} | {_cell(parameter.help)} |\n"


def _default(value: Any) -> str:
    if value is None or value in ("", []) or callable(value):
        return ""
    return ", ".join(f"`{each}`" for each in value) if isinstance(value, (list, tuple)) else f"`{value}`"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
