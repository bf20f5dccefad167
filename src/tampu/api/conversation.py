"""Messages and tools as clients spell them, in every shape seen on the wire, to the values of `core.chat`.

Liberal in what it takes: null content, text parts, calls as text, ids or names. Used by both protocols.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tampu.api.parameter_tables import shown
from tampu.core.chat import Message, ToolCall, ToolSpec
from tampu.core.errors import InvalidRequestError
from tampu.core.json_text import read_json

T = TypeVar("T")

MAX_TOOLS = 1024  # OpenAI allows 128; reading and offering each takes time that other requests wait for
_TEXT_PART_TYPES = (None, "text", "input_text", "output_text")


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
    """A conversation as the client spelled it; `text` brings equal histories into one form.

    Raises:
        InvalidRequestError: for an item that is no message, naming it.
    """
    parsed: list[Message] = []
    for index, item in enumerate(messages):
        where = f"{field}/{index}"
        if not isinstance(item, dict) or not isinstance(item.get("role"), str):
            raise InvalidRequestError(
                where, f"'{where}' must be an object with a role", hint='Send {"role", "content"}.'
            )
        parsed.append(
            Message(
                item["role"],
                content_text(item.get("content"), f"{where}/content"),
                _tool_calls(item, where) if item["role"] == "assistant" else (),
                name=_text_or_none(item.get("name")),
                tool_call_id=_text_or_none(item.get("tool_call_id")),
            )
        )
    return tuple(parsed)


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _tool_calls(item: dict[str, Any], where: str) -> tuple[ToolCall, ...]:
    """The calls of an assistant turn: OpenAI's nested entries, flat ones, or the old single `function_call`.

    Raises:
        InvalidRequestError: for what is no call, naming it.
    """
    entries, path = item.get("tool_calls"), f"{where}/tool_calls"
    if entries is not None and not isinstance(entries, list):
        raise InvalidRequestError(path, f"'{path}' must be an array of calls, not {shown(entries)}")
    places = [(f"{path}/{index}", entry) for index, entry in enumerate(entries or ())]
    if entries is None and item.get("function_call") is not None:
        places = [(f"{where}/function_call", item["function_call"])]
    calls = []
    for place, entry in places:
        function = entry.get("function") if isinstance(entry, dict) else None
        source = function if isinstance(function, dict) else entry
        name = source.get("name") if isinstance(source, dict) else None
        if not isinstance(name, str):
            raise InvalidRequestError(
                place,
                f"'{place}' must be a call with a name, not {shown(entry)}",
                hint='Send {"id", "type": "function", "function": {"name", "arguments"}}.',
            )
        arguments = _arguments(source.get("arguments", source.get("parameters")))
        calls.append(ToolCall(name, arguments, _text_or_none(entry.get("id")) or ""))
    return tuple(calls)


def _arguments(value: Any) -> dict[str, Any]:
    """Arguments as an object; text that holds no object is kept under one key rather than lost."""
    if isinstance(value, str):
        try:
            value = read_json(value) if value.strip() else {}
        except (ValueError, RecursionError):
            return {"arguments": value}
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"arguments": value}


def _typed(source: dict[str, Any], name: str, kind: type[T], otherwise: T, where: str) -> T:
    """A member that may be absent or null. Raises InvalidRequestError when it is of another type."""
    value = source.get(name)
    if value is None:
        return otherwise
    if not isinstance(value, kind):
        wanted = "a string" if kind is str else "a JSON schema of an object"
        raise InvalidRequestError(f"{where}/{name}", f"'{where}/{name}' must be {wanted}, not {shown(value)}")
    return value


def parse_tools(
    tools: Sequence[Any], leave_out: Callable[[str, str], None], field: str = "tools"
) -> tuple[ToolSpec, ...]:
    """Tools in either spelling. Items without a name of their own cannot be called: `leave_out` is told the place
    of each and what is wrong with it, and may raise.

    Raises:
        InvalidRequestError: for a description or parameters of the wrong type, and for too many tools.
    """
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(field, f"'{field}' must hold at most {MAX_TOOLS} tools, not {len(tools)}")
    specs: list[ToolSpec] = []
    names: set[str] = set()
    for index, item in enumerate(tools):
        source = item.get("function") if isinstance(item, dict) and isinstance(item.get("function"), dict) else item
        name = source.get("name") if isinstance(source, dict) else None
        if not isinstance(source, dict) or not isinstance(name, str) or not name:
            leave_out(f"{field}/{index}", "has no name")
            continue
        if name in names:
            leave_out(f"{field}/{index}", f"repeats the name {name!r}")
            continue
        names.add(name)
        where = f"{field}/{index}" if source is item else f"{field}/{index}/function"
        description = _typed(source, "description", str, "", where)
        parameters = _typed(source, "parameters", dict, {}, where)
        specs.append(ToolSpec(name, description, parameters, place=f"{where}/parameters"))
    return tuple(specs)
