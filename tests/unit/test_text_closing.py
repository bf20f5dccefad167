"""A demanded call is complete when max_tokens are used up, whatever the model would rather write."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import jsonschema
import pytest
from byte_vocabulary import EOS, VOCAB_SIZE, byte_compiler, is_allowed
from hypothesis import given, settings
from hypothesis import strategies as st

from tampu.core.chat import ToolSpec
from tampu.text.call_grammar import AutoCallConstraint, CallsConstraint, CallsGrammar, auto_calls, forced_calls
from tampu.text.json_scanner import MAX_DEPTH
from tampu.text.tool_calls import ToolCallPiece, parse_tool_calls

KINDS = ["llama3", "chatml", "none"]
Choose = Callable[[list[int], random.Random], int]


def never_closing(allowed: list[int], rng: random.Random) -> int:
    """A model that goes on and on: it opens, adds, repeats, and ends only what it must."""
    endless = [i for i in allowed if i not in (EOS, *b'"]}')]
    opening = [i for i in endless if i in b"[{,"]
    return rng.choice(opening if opening and rng.random() < 0.5 else endless or allowed)


def at_random(allowed: list[int], rng: random.Random) -> int:
    """A model without a mind."""
    return rng.choice(allowed)


def rambling(allowed: list[int], rng: random.Random) -> int:
    """A model that writes one letter in every string and the highest token elsewhere."""
    return ord("a") if ord("a") in allowed and len(allowed) > 20 else max(i for i in allowed)


def written(
    constraint: CallsConstraint | AutoCallConstraint, choose: Choose, rng: random.Random, max_tokens: int
) -> tuple[str, bool]:
    """The text of at most so many tokens, and whether it ended by itself."""
    out = bytearray()
    for _ in range(max_tokens):
        mask = constraint.next_mask()
        allowed = [token_id for token_id in range(VOCAB_SIZE) if is_allowed(mask, token_id)]
        assert allowed, f"nothing is allowed after {bytes(out)!r}"
        token_id = choose(allowed, rng)
        constraint.accept(token_id)
        if token_id == EOS:
            return out.decode(), True
        out.append(token_id)
    return out.decode("utf-8", "replace"), False


def check(tools: list[ToolSpec], text: str) -> None:
    """One call or more, valid ones, and nothing else."""
    schemas = {tool.name: tool.parameters for tool in tools}
    pieces = parse_tool_calls(text, tools)
    assert pieces
    for piece in pieces:
        assert isinstance(piece, ToolCallPiece), text
        jsonschema.Draft202012Validator(schemas[piece.call.name]).validate(piece.call.arguments)


def least_tokens(calls: CallsGrammar) -> int:
    assert calls.size is not None
    return calls.size.least_tokens


SCALARS = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "minLength": 5},
        {"type": "string", "maxLength": 12},
        {"type": "string", "enum": ["c", "a much longer member"]},
        {"type": "string", "pattern": "^[0-9]+x$"},
        {"type": "string", "format": "date"},
        {"type": "number"},
        {"type": "integer", "minimum": 1, "maximum": 12},
        {"type": "integer", "minimum": 4000},
        {"type": "boolean"},
        {"type": ["string", "null"]},
        {"const": "fixed"},
    ]
)


def _object(members: list[tuple[Any, bool]]) -> dict[str, Any]:
    properties = {f"p{number}": schema for number, (schema, _) in enumerate(members)}
    required = [f"p{number}" for number, (_, is_required) in enumerate(members) if is_required]
    return {"type": "object", "properties": properties, "required": required}


def _array(items: Any, least: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least}


VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(_array, inner, st.integers(0, 2)),
        st.lists(st.tuples(inner, st.booleans()), min_size=1, max_size=3).map(_object),
    ),
    max_leaves=4,
)
PARAMETERS = st.lists(st.tuples(VALUES, st.booleans()), min_size=1, max_size=3).map(_object)


@pytest.mark.parametrize("choose", [never_closing, at_random, rambling])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    parameters=st.lists(PARAMETERS, min_size=1, max_size=2),
    kind=st.sampled_from(KINDS),
    parallel=st.booleans(),
    spare=st.integers(0, 150),
    seed=st.integers(0, 2**32),
)
def test_a_demanded_call_is_complete_within_max_tokens(
    choose: Choose, parameters: list[dict[str, Any]], kind: str, parallel: bool, spare: int, seed: int
) -> None:
    tools = [ToolSpec(f"tool{number}", "", schema) for number, schema in enumerate(parameters)]
    calls = forced_calls(byte_compiler(), tools, kind=kind, parallel=parallel)
    assert least_tokens(calls) > 0
    max_tokens = least_tokens(calls) + spare
    text, has_ended = written(calls.new_constraint(max_tokens), choose, random.Random(seed), max_tokens)
    assert has_ended, text
    check(tools, text)


@pytest.mark.parametrize("choose", [never_closing, at_random, rambling])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    parameters=st.lists(PARAMETERS, min_size=1, max_size=2),
    kind=st.sampled_from(KINDS),
    spare=st.integers(-30, 150),
    seed=st.integers(0, 2**32),
)
def test_an_automatic_call_that_is_promised_is_complete_within_max_tokens(
    choose: Choose, parameters: list[dict[str, Any]], kind: str, spare: int, seed: int
) -> None:
    tools = [ToolSpec(f"tool{number}", "", schema) for number, schema in enumerate(parameters)]
    calls = auto_calls(byte_compiler(), tools, kind=kind, parallel=True)
    assert calls.size.least_tokens > 0
    begun = b'Yes: {"name": "tool0"'
    max_tokens = max(calls.size.least_tokens + spare, 0) + len(begun)
    constraint = calls.new_constraint(max_tokens)
    for number, byte in enumerate(begun):
        assert constraint.next_mask() is None
        assert not constraint.promises_call(number)
        constraint.accept(byte)
    is_promised = constraint.promises_call(len(begun))
    assert is_promised or spare < 60 or calls.size.jump_tokens > 30
    rng = random.Random(seed)
    written_text = bytearray(begun)
    ends_at = None
    for number in range(len(begun), max_tokens):
        mask = constraint.next_mask()
        if mask is None:
            break
        allowed = [token_id for token_id in range(VOCAB_SIZE) if is_allowed(mask, token_id)]
        if allowed == [EOS]:
            break
        assert constraint.promises_call(number) is is_promised
        token_id = choose(allowed, rng)
        constraint.accept(token_id)
        written_text.append(token_id)
        ends_at = number + 1
    if is_promised:
        check(tools, written_text[len("Yes: ") :].decode())
        assert ends_at is not None
        assert not constraint.promises_call(ends_at)
        assert constraint.promises_call(ends_at - 1)


NODE = {
    "$defs": {"n": {"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}},
    "properties": {"root": {"$ref": "#/$defs/n"}},
    "required": ["root"],
}


def test_a_model_that_opens_without_end_stays_within_what_is_read() -> None:
    def open_all(allowed: list[int], rng: random.Random) -> int:
        return next((token_id for token_id in b'[{c"' if token_id in allowed), allowed[0])

    tools = [ToolSpec("tree", "", NODE)]
    calls = forced_calls(byte_compiler(), tools, kind="llama3", parallel=False)
    text, has_ended = written(calls.new_constraint(3000), open_all, random.Random(1), 3000)
    assert has_ended
    deepest = max(accumulate((char in "[{") - (char in "]}") for char in text))
    assert 40 < deepest < MAX_DEPTH
    check(tools, text)


@pytest.mark.parametrize("favourite", [b"9", b".9", b"e9"])
def test_a_number_without_end_is_ended(favourite: bytes) -> None:
    def go_on(allowed: list[int], rng: random.Random) -> int:
        return next((token_id for token_id in favourite if token_id in allowed), allowed[-1])

    tools = [ToolSpec("f", "", _object([({"type": "number"}, True)]))]
    calls = forced_calls(byte_compiler(), tools, kind="llama3", parallel=False)
    text, has_ended = written(calls.new_constraint(3000), go_on, random.Random(1), 3000)
    assert has_ended
    assert 150 < len(text) < 300
    check(tools, text)
