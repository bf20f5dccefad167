"""A conversation as the templates see it. Wire shapes are translated to these values by `api`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_MAX_SHOWN_TOOLS, _MAX_SHOWN_CHARS = 8, 80  # in an error


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model made. `arguments` is the parsed object, `arguments_json` its text, where that is known."""

    name: str
    arguments: dict[str, Any]
    call_id: str = ""
    arguments_json: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `name` is the tool's name on a tool turn; an assistant turn may hold calls and text."""

    role: str  # system, user, assistant, tool; any other role is rendered under its own name
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool offered to the model. `parameters` is a JSON schema object (may be empty).

    `place` is where the client wrote what `parameters` says, for errors: "tools/0/function/parameters".
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)


def shown_name(name: str) -> str:
    """A tool's name in an error: quoted, and cut when it is long."""
    return repr(name if len(name) <= _MAX_SHOWN_CHARS else f"{name[:_MAX_SHOWN_CHARS]}…")


def shown_list(texts: Sequence[str]) -> str:
    """The first of several texts in an error, one for each tool."""
    more = ("…",) if len(texts) > _MAX_SHOWN_TOOLS else ()
    return ", ".join((*texts[:_MAX_SHOWN_TOOLS], *more))
