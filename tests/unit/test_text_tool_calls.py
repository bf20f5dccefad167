"""The tool-call parser: every form, every cut, nothing lost, linear time."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tampu.core.chat import ToolCall, ToolSpec
from tampu.text.tool_calls import (
    ArgumentsPiece,
    BegunCallPiece,
    Piece,
    TextPiece,
    ToolCallParser,
    ToolCallPiece,
    UnfinishedCallPiece,
    join_texts,
    parse_tool_calls,
)

REQUIRED = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [ToolSpec("f"), ToolSpec("g"), ToolSpec("get_weather", "", REQUIRED)]
F1 = '{"name": "f", "parameters": {"a": 1}}'
G = '{"name": "g", "arguments": {}}'


def brief(pieces: list[Piece]) -> list[Any]:
    """Texts as strings, calls as (name, arguments)."""
    return [p.text if isinstance(p, TextPiece) else (p.call.name, p.call.arguments) for p in pieces]


f1, g = ("f", {"a": 1}), ("g", {})
CASES: list[tuple[str, list[Any]]] = [
    # the forms
    (F1, [f1]),
    ('{"name":"f","arguments":{"a":1}}', [f1]),
    ('{"parameters": {"a": 1}, "name": "f"}', [f1]),
    ('{"type": "function", "name": "f", "parameters": {"a": 1}}', [f1]),
    ('{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}', [f1]),
    ('{"function": {"name": "f", "arguments": {"a": 1}}}', [f1]),
    ('{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}', [f1]),
    ('{"type": "function", "function": "f", "parameters": {"a": 1}}', [f1]),
    ('{"name": "f", "parameters": null}', [("f", {})]),
    ('{"name": "f"}', [("f", {})]),
    ('{"name": "f", "parameters": {"a": "line\nline\ttab"}}', [("f", {"a": "line\nline\ttab"})]),
    ('{"name": "f", "parameters": {"a": "\\ud83e\\udd99 \\ud83e"}}', [("f", {"a": "🦙 \ufffd"})]),
    # around and between
    (f"\n\n{F1}\n", [f1]),
    (f"<|python_tag|>{F1}", [f1]),
    (f"<|python_tag|>{F1}; {G}", [f1, g]),
    (f"{F1};{G}", [f1, g]),
    (f"{F1}\n{G}", [f1, g]),
    (f"{F1}{G}", [f1, g]),
    (f"{F1}, {G};", [f1, g]),
    (f"[{F1}]", [f1]),
    (f"[{F1}, {G}]", [f1, g]),
    (f"[\n  {F1},\n  {G}\n]\n", [f1, g]),
    (f"<tool_call>\n{F1}\n</tool_call>", [f1]),
    (f"<tool_call>\n{F1}\n</tool_call>\n<tool_call>\n{G}\n</tool_call>", [f1, g]),
    (f"<tool_call>[{F1}, {G}]</tool_call>", [f1, g]),
    (f"```json\n{F1}\n```", [f1]),
    (f"```\n{F1}\n```", [f1]),
    (f"```json\n[{F1}]\n```\n```json\n{G}\n```", [f1, g]),
    (f"Let me see.\n\n{F1}", ["Let me see.", f1]),
    (f"Sure:\n```json\n{F1}\n```\nDone.", ["Sure:", f1, "\nDone."]),
    (f"One {F1} two {G} three", ["One", f1, " two", g, " three"]),
    (f"{F1}, and then", [f1, ", and then"]),
    (f"```{F1} and\n```json\n{G}\n```", [f1, " and", g]),
    (f"<tool_call>{F1} so </tool_call>", [f1, " so </tool_call>"]),
    # not calls
    ("Hello, world! 1 < 2 `code` {x} [y](z) ```", ["Hello, world! 1 < 2 `code` {x} [y](z) ```"]),
    ('{"name": "h", "parameters": {}}', ['{"name": "h", "parameters": {}}']),
    ('{"name": "f", "age": 3}', ['{"name": "f", "age": 3}']),
    ('{"name": "get_weather"}', ['{"name": "get_weather"}']),
    ('{"name": "f", "parameters": [1]}', ['{"name": "f", "parameters": [1]}']),
    ('{"name": "f", "parameters": {}, "arguments": {}}', ['{"name": "f", "parameters": {}, "arguments": {}}']),
    ('{"name": "f", "parameters": "no"}', ['{"name": "f", "parameters": "no"}']),
    ('{"name": "f", "parameters": {"a": 1e999}}', ['{"name": "f", "parameters": {"a": 1e999}}']),
    ('{"type": "object", "name": "f", "parameters": {}}', ['{"type": "object", "name": "f", "parameters": {}}']),
    ('{"result": {"name": "f", "parameters": {}}}', ['{"result": {"name": "f", "parameters": {}}}']),
    (f"[1, {F1}]", [f"[1, {F1}]"]),
    (f'["x\\"", {F1}]', [f'["x\\"", {F1}]']),
    (f"[[{F1}]]", [f"[[{F1}]]"]),
    ("[]", ["[]"]),
    ('```json\n{"a": 1}\n```', ['```json\n{"a": 1}\n```']),
    (f'```json\n{{"a": 1}}\n```\n{F1}', ['```json\n{"a": 1}\n```', f1]),
    ("```python\nprint({})\n```", ["```python\nprint({})\n```"]),
    ("<tool_call>later</tool_call>", ["<tool_call>later</tool_call>"]),
    ('<|python_tag|>brave_search.call(query="x")', ['<|python_tag|>brave_search.call(query="x")']),
    # broken or cut off: text, and what follows is still read
    ('{"name": "f", "parameters": {"a": ', ['{"name": "f", "parameters": {"a": ']),
    (f'{{"name": "f", oops {F1}', ['{"name": "f", oops', f1]),
    (f'[{F1}, {{"name": "g"', [f1, ', {"name": "g"']),
    (f"[{F1}, 2, {G}]", [f1, f", 2, {G}]"]),
    (f"[{F1},", [f1]),
    (f"[{F1},]", [f1, ",]"]),
    (f"{F1} []", [f1, " []"]),
    ('{"name": "f", "parameters": {}', ['{"name": "f", "parameters": {}']),
    ('{"name": "f", "parameters": {"a": 01}}', ['{"name": "f", "parameters": {"a": 01}}']),
    ('{"name": "f", "parameters": {"a": tru}}', ['{"name": "f", "parameters": {"a": tru}}']),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_forms(text: str, expected: list[Any]) -> None:
    assert brief(parse_tool_calls(text, TOOLS)) == expected


@pytest.mark.parametrize("text", [text for text, _ in CASES])
def test_character_by_character_gives_the_same(text: str) -> None:
    assert in_parts(list(text)) == parse_tool_calls(text, TOOLS)


def in_parts(parts: list[str], *, is_promised: bool = False) -> list[Piece]:
    parser = ToolCallParser(TOOLS, is_promised=lambda: is_promised)
    pieces = [piece for part in parts for piece in parser.feed(part)]
    return join_texts([*pieces, *parser.finish()])


FRAGMENTS = [
    *(text for text, _ in CASES),
    *(
        '{"',
        '"name"',
        ":",
        '"f"',
        '"parameters"',
        "{",
        "}",
        "[",
        "]",
        ",",
        ";",
        " ",
        "\n",
        "`",
        "```",
        "```json\n",
        "<",
    ),
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "prose", "\\", '"', "1", "é🦙", "\x00", "\u00a0"),
]
TEXTS = st.one_of(st.lists(st.sampled_from(FRAGMENTS), max_size=7).map("".join), st.text(max_size=30))
NOTATION = r"(?:\s|[;,\[\]]|<\|python_tag\|>|</?tool_call>|```(?:json|JSON|tool_call)?)*?"


@settings(max_examples=200)
@given(TEXTS, st.data())
def test_any_cut_gives_the_same_pieces(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = parse_tool_calls(text, TOOLS)
    assert in_parts(parts) == expected
    assert in_parts(list(text)) == expected


@settings(max_examples=200)
@given(TEXTS)
def test_nothing_is_lost_or_doubled(text: str) -> None:
    pieces = parse_tool_calls(text, TOOLS)
    spelled = [re.escape(piece.text if isinstance(piece, TextPiece) else piece.raw) for piece in pieces]
    assert re.fullmatch(NOTATION + NOTATION.join([*spelled, ""]), text, re.DOTALL)
    if not any(isinstance(piece, ToolCallPiece) for piece in pieces):
        assert "".join(piece.text for piece in pieces if isinstance(piece, TextPiece)) == text


ARGUMENTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-(2**63), 2**64 - 1),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(),
        ),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
        max_leaves=6,
    ),
    max_size=3,
)


@given(st.lists(st.tuples(st.sampled_from("fg"), ARGUMENTS), min_size=1, max_size=3), st.booleans(), st.booleans())
def test_any_arguments_come_back(calls: list[tuple[str, dict[str, Any]]], is_ascii: bool, is_array: bool) -> None:
    spelled = [json.dumps({"name": n, "parameters": a}, ensure_ascii=is_ascii) for n, a in calls]
    text = "[" + ", ".join(spelled) + "]" if is_array else "; ".join(spelled)
    parts = [text[i : i + 3] for i in range(0, len(text), 3)]
    whole = in_parts(parts)
    assert brief(whole) == calls
    streamed = in_parts(parts, is_promised=True)
    assert sum(isinstance(piece, BegunCallPiece) for piece in streamed) == len(calls)
    check_streamed(streamed, whole)


def test_a_call_is_delivered_with_its_last_character() -> None:
    parser = ToolCallParser(TOOLS)
    assert parser.feed("Sure. ") == [TextPiece("Sure.")]
    assert parser.feed(F1[:-1]) == []
    assert parser.feed("}") == [ToolCallPiece(ToolCall("f", {"a": 1}), F1)]


# --- piece by piece ---------------------------------------------------------------------------------------------


def test_a_promised_call_is_delivered_from_its_name_on() -> None:
    parser = ToolCallParser(TOOLS, is_promised=lambda: True)
    assert parser.feed('Sure. <tool_call>\n{"name": "f') == [TextPiece("Sure.")]
    assert parser.feed('"') == [BegunCallPiece("f")]
    assert parser.feed(', "arguments": ') == []
    assert parser.feed('{"a') == [ArgumentsPiece('{"a')]
    assert parser.feed('":1') == [ArgumentsPiece('":1')]
    assert parser.feed("}}\n</tool_call>") == [
        ArgumentsPiece("}"),
        ToolCallPiece(ToolCall("f", {"a": 1}), '{"name": "f", "arguments": {"a":1}}'),
    ]
    assert parser.finish() == []


def test_the_promise_is_asked_for_each_call() -> None:
    promises = iter([False, True])
    parser = ToolCallParser(TOOLS, is_promised=lambda: next(promises))
    kinds = [type(piece) for piece in parser.feed(f"{F1}; {G}")]
    assert kinds == [ToolCallPiece, BegunCallPiece, ArgumentsPiece, ToolCallPiece]


def test_a_call_that_had_begun_never_becomes_text() -> None:
    parser = ToolCallParser(TOOLS, is_promised=lambda: True)
    assert parser.feed(F1[:-3]) == [BegunCallPiece("f"), ArgumentsPiece('{"a": ')]
    assert parser.finish() == [UnfinishedCallPiece(F1[:-3])]


@pytest.mark.parametrize(
    ("written", "arguments_json"),
    [
        ('{"name": "f", "parameters": {"a":1,  "b": 2.50}}', '{"a":1,  "b": 2.50}'),
        ('{"type": "function", "name": "f", "arguments": {"a":1}}', '{"a":1}'),
        ('{"parameters": {"a":1}, "name": "f"}', '{"a":1}'),
        ('{"name": "f", "arguments": "{\\"a\\":1}"}', '{"a": 1}'),
        ('{"function": {"name": "f", "arguments": {"a":1}}}', '{"a": 1}'),
        ('{"name": "f", "parameters": {"a": 123456789012345678901234567890}}', '{"a": 123456789012345678901234567890}'),
        ('{"name": "f", "parameters": null}', "{}"),
        ('{"name": "f"}', "{}"),
        ('{"name": "f", "parameters": {"a": "x\ny"}}', '{"a": "x\\ny"}'),
        ('{"name": "f", "parameters": {"a": "\\ud83e"}}', '{"a": "\ufffd"}'),
    ],
)
def test_arguments_are_spelled_as_the_model_wrote_them_where_that_is_json(written: str, arguments_json: str) -> None:
    (piece,) = parse_tool_calls(f"[{written}]", TOOLS)
    assert isinstance(piece, ToolCallPiece)
    assert piece.call.arguments_json == arguments_json
    assert json.loads(arguments_json, parse_int=float) == piece.call.arguments


def check_streamed(pieces: list[Piece], whole: list[Piece]) -> None:
    """The fragments of each call are its arguments; without them the pieces are those of whole calls."""
    calls: list[Piece] = []
    name, fragments = None, ""
    for piece in pieces:
        match piece:
            case BegunCallPiece():
                assert name is None
                name, fragments = piece.name, ""
            case ArgumentsPiece():
                assert name is not None
                assert piece.text
                fragments += piece.text
            case ToolCallPiece():
                if name is not None:
                    assert (name, fragments) == (piece.call.name, piece.call.arguments_json)
                name = None
                calls.append(piece)
            case UnfinishedCallPiece():
                assert name is not None
                assert fragments in piece.text
                name = None
                calls.append(TextPiece(piece.text))
            case TextPiece():
                assert name is None
                calls.append(piece)
    assert name is None
    assert join_texts(calls) == whole


def as_text(pieces: list[Piece]) -> list[Piece]:
    """The same, with calls that came to nothing as text: how much of it is known to be none depends on the cut."""
    return join_texts([TextPiece(p.text) if isinstance(p, UnfinishedCallPiece) else p for p in pieces])


@settings(max_examples=300)
@given(TEXTS, st.data())
def test_any_cut_gives_the_same_fragments(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    pieces = in_parts(parts, is_promised=True)
    assert as_text(pieces) == as_text(in_parts(list(text), is_promised=True))
    spelled = [
        piece.text if isinstance(piece, TextPiece | UnfinishedCallPiece) else piece.raw
        for piece in pieces
        if not isinstance(piece, BegunCallPiece | ArgumentsPiece)
    ]
    assert re.fullmatch(NOTATION + NOTATION.join([*map(re.escape, spelled), ""]), text, re.DOTALL)
    if not any(isinstance(piece, UnfinishedCallPiece) for piece in pieces):
        check_streamed(pieces, parse_tool_calls(text, TOOLS))


def test_text_is_let_go_as_soon_as_it_can_be_no_call() -> None:
    parser = ToolCallParser(TOOLS)
    assert brief(parser.feed('{"ty')) == []
    assert brief(parser.feed("r")) == ['{"tyr']  # no key of a call begins so
    assert brief(parser.feed('e": "A long')) == ['e": "A long']
    assert brief(parser.feed('"} <b')) == ['"} <b']
    assert brief(parser.feed("> [1")) == ["> [1"]


@pytest.mark.parametrize(
    "unit",
    [
        '{"name":"f","parameters":',
        "[",
        "{",
        '{"a":',
        "[{",
        "<tool_call>",
        "```json\n",
        "`",
        " ",
        '{"name": "f"',
        '["',
        ";",
        "<|",
    ],
)
def test_adversarial_text_takes_linear_work(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tampu.text.json_scanner import JsonScanner

    read = 0
    original = JsonScanner.step

    def counted(self: JsonScanner, text: str, start: int) -> Any:
        nonlocal read
        event, end = original(self, text, start)
        read += end - start
        return event, end

    monkeypatch.setattr(JsonScanner, "step", counted)
    text = unit * (20_000 // len(unit))
    assert "".join(p.text for p in in_parts([text]) if isinstance(p, TextPiece)) == text
    assert read <= len(text)


def test_deep_nesting_is_text() -> None:
    deep = '{"name":"f","parameters":' + '{"a":' * 200 + "1" + "}" * 201
    assert "".join(p.text for p in parse_tool_calls(deep, TOOLS) if isinstance(p, TextPiece)) == deep
    nested_string = json.dumps({"name": "f", "arguments": "[" * 100_000})
    assert brief(parse_tool_calls(nested_string, TOOLS)) == [nested_string]
