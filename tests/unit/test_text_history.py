"""Histories with tools: every shape clients send becomes one form, and so one prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tampu.core.chat import Message, ToolCall, ToolSpec
from tampu.text.chat_template import chat_template
from tampu.text.history import canonical_messages

ARGUMENTS = {"city": "Cusco"}
RESULT = '{"t": 12}'
CANONICAL = (
    Message("user", "Weather?"),
    Message("assistant", "", (ToolCall("get_weather", ARGUMENTS),)),
    Message("tool", RESULT, name="get_weather"),
)
CALL_TEXT = json.dumps({"name": "get_weather", "arguments": ARGUMENTS})
CALL = ToolCall("get_weather", ARGUMENTS, "call_1")
SHAPES = {
    "documentation and ai-utils": [Message("assistant", CALL_TEXT), Message("tool", RESULT, name="get_weather")],
    "workers-ai-provider": [
        Message("assistant", "", (CALL,)),
        Message("tool", RESULT, name="get_weather", tool_call_id="call_1"),
    ],
    "openai": [Message("assistant", "", (CALL,)), Message("tool", RESULT, tool_call_id="call_1")],
    "langchain": [
        Message("assistant", json.dumps({"name": "get_weather", "parameters": ARGUMENTS}), (CALL,)),
        Message("tool", RESULT, name="get_weather", tool_call_id="call_1"),
    ],
    "foreign ids": [Message("assistant", "", (CALL,)), Message("tool", RESULT, tool_call_id="other")],
    "no name": [Message("assistant", CALL_TEXT), Message("tool", RESULT)],
    "list": [Message("assistant", f"[{CALL_TEXT}]"), Message("tool", RESULT)],
    "tagged": [Message("assistant", f"<tool_call>\n{CALL_TEXT}\n</tool_call>"), Message("tool", RESULT)],
    "fenced": [Message("assistant", f"```json\n{CALL_TEXT}\n```"), Message("tool", RESULT)],
    "python tag": [Message("assistant", f"<|python_tag|>{CALL_TEXT}"), Message("ipython", RESULT)],
    "wrapped": [
        Message("assistant", json.dumps({"type": "function", "function": json.loads(CALL_TEXT)})),
        Message("function", RESULT, name="get_weather"),
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["llama3", "chatml", "none"])
def test_every_documented_shape_gives_one_prompt(shape: str, kind: str) -> None:
    messages = canonical_messages([Message("user", "Weather?"), *SHAPES[shape]])
    assert messages == CANONICAL
    tools = [ToolSpec("get_weather")]
    assert chat_template(kind).render(messages, tools) == chat_template(kind).render(CANONICAL, tools)


def test_json_that_no_tool_answers_stays_text() -> None:
    messages = (Message("user", "As JSON"), Message("assistant", CALL_TEXT), Message("user", "Thanks"))
    assert canonical_messages(messages) == messages


def test_json_that_is_no_call_stays_text_before_a_tool_turn() -> None:
    messages = (Message("assistant", '{"name": "x", "age": 3}'), Message("tool", "1", name="f"))
    assert canonical_messages(messages) == messages


def test_prose_beside_calls_is_kept() -> None:
    spelled = [Message("assistant", f"Let me look.\n{CALL_TEXT}"), Message("tool", RESULT)]
    apart = [Message("assistant", "Let me look.", (CALL,)), Message("tool", RESULT, tool_call_id="call_1")]
    expected = (Message("assistant", "Let me look.", (ToolCall("get_weather", ARGUMENTS),)), CANONICAL[2])
    assert canonical_messages(spelled) == canonical_messages(apart) == expected


def test_results_follow_their_calls() -> None:
    calls = (ToolCall("f", {}, "a"), ToolCall("g", {}, "b"), ToolCall("f", {"x": 1}, "c"))
    by_id = [
        Message("tool", "3", tool_call_id="c"),
        Message("tool", "2", tool_call_id="b"),
        Message("tool", "1", tool_call_id="a"),
    ]
    by_name = [Message("tool", "2", name="g"), Message("tool", "1", name="f"), Message("tool", "3", name="f")]
    by_order = [Message("tool", "1"), Message("tool", "2"), Message("tool", "3")]
    expected = (
        Message("assistant", "", (ToolCall("f", {}),)),
        Message("tool", "1", name="f"),
        Message("assistant", "", (ToolCall("g", {}),)),
        Message("tool", "2", name="g"),
        Message("assistant", "", (ToolCall("f", {"x": 1}),)),
        Message("tool", "3", name="f"),
    )
    for results in (by_id, by_name, by_order):
        assert canonical_messages([Message("assistant", "", calls), *results]) == expected


def test_results_without_a_call_are_kept() -> None:
    extra = [
        Message("assistant", "", (CALL,)),
        Message("tool", "1"),
        Message("tool", "2", name="other", tool_call_id="z"),
    ]
    assert canonical_messages(extra)[1:] == (
        Message("tool", "1", name="get_weather"),
        Message("tool", "2", name="other"),
    )
    alone = (Message("tool", "1", name="f"), Message("user", "Hi"))
    assert canonical_messages(alone) == alone


def test_roles() -> None:
    roles = [
        message.role for message in canonical_messages([Message(r) for r in ("developer", "user", "function", "x")])
    ]
    assert roles == ["system", "user", "tool", "x"]


# --- random histories -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """Calls of one turn, with what each returned."""

    text: str
    calls: tuple[tuple[str, dict[str, Any], str], ...]


NAMES = st.sampled_from(["f", "g", "get_weather", "é"])
WIRE_INTEGERS = st.integers(-(2**63), 2**64 - 1)  # a request's body holds no others: beyond them it holds floats
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), WIRE_INTEGERS, st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=3,
)
CALLS = st.tuples(NAMES, st.dictionaries(st.text(max_size=3), VALUES, max_size=2), st.text(max_size=8))
ROUNDS = st.builds(Round, st.sampled_from(["", "Let me see."]), st.lists(CALLS, min_size=1, max_size=3).map(tuple))
TURNS = st.lists(
    st.one_of(st.sampled_from([Message("user", "Hi"), Message("assistant", "Hello."), Message("system", "S")]), ROUNDS),
    max_size=5,
)


def spelled(name: str, arguments: dict[str, Any], draw: st.DrawFn) -> str:
    key = draw(st.sampled_from(["parameters", "arguments"]))
    call: dict[str, Any] = {"name": name, key: arguments}
    if draw(st.booleans()):
        call = {"type": "function", "function": call}
    text = json.dumps(call, ensure_ascii=draw(st.booleans()) and name.isascii())
    return draw(st.sampled_from(["{}", "<tool_call>\n{}\n</tool_call>", "```json\n{}\n```"])).replace("{}", text, 1)


def shaped(turn: Round, draw: st.DrawFn) -> list[Message]:
    """One of the shapes in which clients send the round."""
    shape = draw(st.sampled_from(["openai", "names", "order", "text", "both", "one by one", "one by one as text"]))
    ids = [f"id{i}" for i in range(len(turn.calls))]
    calls = tuple(ToolCall(name, arguments, ids[i]) for i, (name, arguments, _) in enumerate(turn.calls))
    as_text = "\n".join([*([turn.text] if turn.text else []), *(spelled(n, a, draw) for n, a, _ in turn.calls)])
    if shape == "openai":
        order = draw(st.permutations(range(len(ids))))
        results = [Message("tool", turn.calls[i][2], tool_call_id=ids[i]) for i in order]
        return [Message("assistant", turn.text, calls), *results]
    results = [Message("tool", result, name=name if shape == "names" else None) for name, _, result in turn.calls]
    if shape in ("names", "order"):
        return [Message("assistant", turn.text, calls), *results]
    if shape == "text":
        return [Message("assistant", as_text), *results]
    if shape == "both":
        return [Message("assistant", as_text, calls), *results]
    messages = []
    for index, (call, result) in enumerate(zip(calls, results, strict=True)):
        text = turn.text if index == 0 else ""
        if shape == "one by one":
            messages.append(Message("assistant", text, (call,)))
        else:
            messages.append(Message("assistant", f"{text}\n{spelled(call.name, call.arguments, draw)}".strip()))
        messages.append(result)
    return messages


@st.composite
def two_shapes(draw: st.DrawFn) -> tuple[list[Message], list[Message]]:
    turns = draw(TURNS)
    histories: tuple[list[Message], list[Message]] = ([], [])
    for turn in turns:
        for history in histories:
            history += shaped(turn, draw) if isinstance(turn, Round) else [turn]
    return histories


@given(two_shapes())
def test_any_two_shapes_of_a_history_give_one_prompt(histories: tuple[list[Message], list[Message]]) -> None:
    first, second = (canonical_messages(history) for history in histories)
    assert first == second
    assert canonical_messages(first) == first
    for kind in ("llama3", "chatml", "none"):
        assert chat_template(kind).render(first) == chat_template(kind).render(second)
