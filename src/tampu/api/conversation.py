"""Messages and tools as clients spell them, in every shape seen on the wire, to the values of `core.chat`.

Liberal in what it takes: null content, text parts, calls as text, ids or names. Used by both protocols.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tampu.core.chat import Message, ToolCall, ToolSpec
from tampu.core.errors import InvalidRequestError

_TEXT_PART_TYPES = (None, "text", "input_text", "output_text")
_ROLES: dict[str, str] = {"developer": "system", "function": "tool"}


def content_text(content: Any, field: str) -> str:
    """The text of a `content`: a string, null, or an array of text parts.

    Raises:
        InvalidRequestError: for parts that are not text, naming the part.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError(field, f"'{field}' must be a string, null or an array of text parts")
    texts = []
    for index, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") in _TEXT_PART_TYPES and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise InvalidRequestError(
                f"{field}/{index}",
                f"'{field}/{index}' is a part of type {json.dumps(kind)}, and this model reads text only",
                hint='Send parts of the form {"type": "text", "text": "..."}.',
            )
    return "".join(texts)


def parse_messages(messages: Sequence[Any], field: str = "messages") -> tuple[Message, ...]:
    """A conversation in canonical form: equal histories give equal values, however the client spelled them.

    Raises:
        InvalidRequestError: for an item that is no message, naming it.
    """
    parsed: list[Message] = []
    names_by_id: dict[str, str] = {}
    for index, item in enumerate(messages):
        where = f"{field}/{index}"
        if not isinstance(item, dict) or not isinstance(item.get("role"), str):
            raise InvalidRequestError(
                where, f"'{where}' must be an object with a role", hint='Send {"role", "content"}.'
            )
        role = _canonical_role(item["role"])
        text = content_text(item.get("content"), f"{where}/content")
        if role == "tool":
            call_id = item.get("tool_call_id")
            name = item.get("name")
            if not isinstance(name, str) and isinstance(call_id, str):
                name = names_by_id.get(call_id)
            parsed.append(Message("tool", text, name=name if isinstance(name, str) else None))
            continue
        calls: tuple[ToolCall, ...] = ()
        if role == "assistant":
            calls = _tool_calls(item, names_by_id)
            called = _calls_in_text(text)
            followed_by_result = index + 1 < len(messages) and _is_tool_turn(messages[index + 1])
            if called and (calls or followed_by_result):
                text, calls = "", calls or called
        parsed.append(Message(role, text, calls))
    return tuple(parsed)


def _canonical_role(role: str) -> str:
    return _ROLES.get(role, role)


def _is_tool_turn(item: Any) -> bool:
    return isinstance(item, dict) and item.get("role") in ("tool", "function")


def _tool_calls(item: dict[str, Any], names_by_id: dict[str, str]) -> tuple[ToolCall, ...]:
    """The calls of an assistant turn: OpenAI's nested entries, flat ones, or the old single `function_call`."""
    entries = item.get("tool_calls")
    if not isinstance(entries, list):
        entries = [item["function_call"]] if isinstance(item.get("function_call"), dict) else []
    calls = []
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        function = entry.get("function")
        source = function if isinstance(function, dict) else entry
        name = source.get("name")
        if not isinstance(name, str):
            continue
        if isinstance(entry.get("id"), str):
            names_by_id[entry["id"]] = name
        calls.append(ToolCall(name, _arguments(source.get("arguments", source.get("parameters")))))
    return tuple(calls)


def _arguments(value: Any) -> dict[str, Any]:
    """Arguments as an object; text that holds no object is kept under one key rather than lost."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            return {"arguments": value}
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"arguments": value}


def _calls_in_text(text: str) -> tuple[ToolCall, ...]:
    """Calls that a client wrote as JSON text, as the documented examples do; empty when the text is anything else."""
    stripped = text.strip()
    if not (stripped.startswith(("{", "[")) and stripped.endswith(("}", "]"))):
        return ()
    try:
        value = json.loads(stripped)
    except (ValueError, RecursionError):
        return ()
    calls = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            return ()
        if not (entry.keys() & {"arguments", "parameters"}):
            return ()
        calls.append(ToolCall(entry["name"], _arguments(entry.get("arguments", entry.get("parameters")))))
    return tuple(calls)


def parse_tools(tools: Sequence[Any], notes: list[str], field: str = "tools") -> tuple[ToolSpec, ...]:
    """Tools in either spelling. Items without a name cannot be called: they are left out and `notes` says so."""
    specs: list[ToolSpec] = []
    for index, item in enumerate(tools):
        source = item.get("function") if isinstance(item, dict) and isinstance(item.get("function"), dict) else item
        name = source.get("name") if isinstance(source, dict) else None
        if not isinstance(source, dict) or not isinstance(name, str) or not name:
            notes.append(f"'{field}/{index}' has no name and was left out.")
            continue
        if any(spec.name == name for spec in specs):
            notes.append(f"'{field}/{index}' repeats the name {name!r} and was left out.")
            continue
        description = source.get("description")
        parameters = source.get("parameters")
        specs.append(
            ToolSpec(
                name,
                description if isinstance(description, str) else "",
                parameters if isinstance(parameters, dict) else {},
            )
        )
    return tuple(specs)
