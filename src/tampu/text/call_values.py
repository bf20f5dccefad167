"""Reads a JSON object as a call to an offered tool, or says that it is none. Knows values, not how text arrives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tampu.core.chat import ToolCall, ToolSpec
from tampu.core.json_text import read_integer, read_json

ARGUMENTS_KEYS = ("parameters", "arguments")
CALL_KEYS = ("name", *ARGUMENTS_KEYS, "type", "function", "id")


def read_call(raw: str, tools: Mapping[str, ToolSpec]) -> ToolCall | None:
    """The JSON object `raw` as a call to one of the tools (by name); None when it is not one."""
    try:
        return _as_call(read_json(raw, strict=False), tools)
    except (ValueError, RecursionError):
        return None


def is_spelling_of(text: str, arguments: dict[str, Any]) -> bool:
    """True when `text` is JSON in the strict sense and says exactly these arguments."""
    try:
        return bool(json.loads(text, parse_int=read_integer) == arguments)
    except (ValueError, RecursionError):
        return False


def _as_call(value: dict[str, Any], tools: Mapping[str, ToolSpec]) -> ToolCall | None:
    """The value as a call to an offered tool. Raises ValueError or RecursionError for broken arguments."""
    if not value.keys() <= set(CALL_KEYS) or value.get("type", "function") != "function":
        return None
    inner = value.get("function")
    if isinstance(inner, dict):
        if value.keys() - {"type", "function", "id"} or inner.keys() - {"name", *ARGUMENTS_KEYS}:
            return None
        value = inner
    elif isinstance(inner, str) and "name" not in value:
        value = {**value, "name": inner}
    elif inner is not None:
        return None
    name = value.get("name")
    tool = tools.get(name) if isinstance(name, str) else None
    if tool is None or set(ARGUMENTS_KEYS) <= value.keys():
        return None
    if not set(ARGUMENTS_KEYS) & value.keys() and tool.parameters.get("required"):
        return None
    arguments = value.get("parameters", value.get("arguments"))
    if isinstance(arguments, str):
        arguments = read_json(arguments, strict=False)
    if arguments is None:
        arguments = {}
    return ToolCall(tool.name, arguments) if isinstance(arguments, dict) else None
