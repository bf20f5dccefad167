"""JSON from clients and models: what the slow reader makes of numbers and broken strings, beside the fast one."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tampu.core.json_text import read_json

BORDERS = [-(2**63) - 1, -(2**63), 2**63, 2**64 - 1, 2**64, 10**300]


@given(st.integers() | st.sampled_from(BORDERS))
def test_integers_are_read_as_in_a_body(number: int) -> None:
    read, expected = read_json(str(number)), orjson.loads(str(number))
    assert (read, type(read)) == (expected, type(expected))
    assert orjson.loads(orjson.dumps(read)) == read


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", "1e999", "1" * 400, "{", "", "[" * 100_000, "01"])
def test_what_is_not_json_or_not_finite(text: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        read_json(text)


def test_half_a_surrogate_pair() -> None:
    assert read_json(r'{"\ud800": ["a\udc00b", "\ud83d\ude00"]}') == {"\ufffd": ["a\ufffdb", "😀"]}


def test_control_characters_need_leave() -> None:
    assert read_json('"a\nb"', strict=False) == "a\nb"
    with pytest.raises(ValueError, match="control character"):
        read_json('"a\nb"')


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_any_text_comes_back(value: object) -> None:
    assert read_json(json.dumps(value)) == value
