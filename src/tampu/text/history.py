"""Conversations with tools in one form, whatever shape the client sent them in. Knows no wire format and no template.

Clients write the same history in many ways: calls as JSON text, as `tool_calls`, or both; several calls in one turn or
one turn each; results matched by id, by name or by order. Here they become equal, so that they render to one prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tampu.core.chat import Message, ToolCall, ToolSpec
from tampu.text.tool_calls import TextPiece, ToolCallPiece, parse_tool_calls

_ROLES = {"function": "tool", "ipython": "tool", "developer": "system"}
_NAMES = re.compile(r'"(?:name|function)"\s*:\s*"([^"\\]+)"')


def canonical_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same conversation in canonical form. Applying it twice changes nothing more.

    Roles: `function` and `ipython` are `tool`, `developer` is `system`. An assistant turn that only spells calls which
    tool turns then answer holds these as `tool_calls`; text that merely repeats its `tool_calls` is dropped. Each call
    is a turn of its own, followed by its results, which carry the name of the tool. Ids have done their work and are
    gone.
    """
    renamed = [replace(m, role=_ROLES[m.role]) if m.role in _ROLES else m for m in messages]
    canonical: list[Message] = []
    position = 0
    while position < len(renamed):
        message = renamed[position]
        position += 1
        if message.role != "assistant":
            canonical.append(_without_ids(message))
            continue
        results: list[Message] = []
        while position < len(renamed) and renamed[position].role == "tool":
            results.append(renamed[position])
            position += 1
        canonical += _round(_with_calls(message, is_answered=bool(results)), results)
    return tuple(canonical)


def _with_calls(message: Message, *, is_answered: bool) -> Message:
    """The assistant's turn with the calls that its text spells as `tool_calls`."""
    if not (message.tool_calls or is_answered) or not message.content:
        return message
    names = dict.fromkeys(_NAMES.findall(message.content))
    pieces = parse_tool_calls(message.content, [ToolSpec(name) for name in names])
    spelled = tuple(piece.call for piece in pieces if isinstance(piece, ToolCallPiece))
    if not spelled:
        return message
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece)).strip()
    return replace(message, content=text, tool_calls=message.tool_calls or spelled)


def _round(message: Message, results: Sequence[Message]) -> list[Message]:
    """The assistant's turn cut into one turn for each call, each followed by what answers it."""
    calls = message.tool_calls
    if not calls:
        return [_without_ids(message), *map(_without_ids, results)]
    answers: list[list[Message]] = [[] for _ in calls]
    unmatched: list[Message] = []
    for result in results:
        index = _answered_call(result, calls, answers)
        if index is None:
            unmatched.append(_without_ids(result))
        else:
            answers[index].append(_without_ids(replace(result, name=calls[index].name)))
    turns: list[Message] = []
    for index, call in enumerate(calls):
        content = message.content if index == 0 else ""
        turns.append(Message("assistant", content, (ToolCall(call.name, call.arguments),)))
        turns += answers[index]
    return turns + unmatched


def _answered_call(result: Message, calls: Sequence[ToolCall], answers: Sequence[Sequence[Message]]) -> int | None:
    """Which call a result answers: by id, else the first open one of that name, else the first open one."""
    if result.tool_call_id:
        for index, call in enumerate(calls):
            if call.call_id == result.tool_call_id:
                return index
    is_open = [index for index in range(len(calls)) if not answers[index]]
    same_name = [index for index in is_open if calls[index].name == result.name]
    return next(iter(same_name or is_open), None)


def _without_ids(message: Message) -> Message:
    calls = tuple(ToolCall(call.name, call.arguments) for call in message.tool_calls)
    return replace(message, tool_calls=calls, tool_call_id=None)
