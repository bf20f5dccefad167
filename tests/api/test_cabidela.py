"""The validator: the verdict table row by row, and properties over arbitrary JSON."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tampu.api.cabidela import SchemaMismatchError, num_utf16_units, validate
from tampu.api.config import ServerConfig
from tampu.api.errors import ApiError
from tampu.api.native_request import parse_native_request
from tampu.api.run_schema import INPUT_SCHEMA
from tampu.core.errors import InvalidRequestError

USER = {"role": "user", "content": "hi"}
P = "required properties at '/' are 'prompt'"
M = "required properties at '/' are 'messages'"
NONE = "oneOf at '/' not met, 0 matches: "
LONG = "x" * 131_073

PASSES: list[Any] = [
    {"prompt": "hi", "messages": None},
    {"prompt": "hi", "messages": "x"},
    {"prompt": "hi", "messages": [{"role": "user"}]},
    {"prompt": "", "messages": [USER]},
    {"prompt": None, "messages": [USER]},
    {"messages": []},
    {"messages": ["hi"]},
    {"messages": [1]},
    {"messages": [None]},
    {"messages": [{"role": "wizard", "content": ""}]},
    {"messages": [{"role": "tool", "content": "4", "name": "f", "tool_call_id": "1", "tool_calls": []}]},
    {"prompt": "hi", "max_tokens": 0},
    {"prompt": "hi", "max_tokens": -5},
    {"prompt": "hi", "max_tokens": 5.0},
    {"messages": [USER], "raw": "true"},
    {"messages": [USER], "lora": 5},
    *({"messages": [USER], "tools": tools} for tools in (None, {}, [], [5], [{"name": "f"}], [{"description": "d"}])),
    *({"prompt": "hi", "image": image} for image in (None, "x", 5, [1], [[]], {"a": 1})),
    *({"prompt": "hi", key: value} for key in ("stop", "response_format", "tool_choice", "foo") for value in (None, 5)),
    {"prompt": "hi", "top_p": 1.5, "top_k": 50, "seed": 9999999999, "temperature": 5},
]

REFUSED: list[tuple[Any, str]] = [
    ({}, f"{NONE}{P}, {M}"),
    ([], f"{NONE}{P}, {M}"),
    (["prompt"], f"{NONE}{P}, {M}"),
    ("prompt", f"{NONE}{P}, {M}"),
    (None, f"{NONE}{P}, {M}"),
    (5, f"{NONE}{P}, {M}"),
    ({"prompt": "hi", "messages": [USER]}, "oneOf at '/' not met, 2 matches"),
    ({"prompt": "hi", "messages": []}, "oneOf at '/' not met, 2 matches"),
    ({"prompt": ""}, f"{NONE}Length of '/prompt' must be >= 1 not met, {M}"),
    ({"prompt": LONG}, f"{NONE}Length of '/prompt' must be <= 131072, {M}"),
    ({"prompt": "😀" * 65_537}, f"{NONE}Length of '/prompt' must be <= 131072, {M}"),
    ({"prompt": 5}, f"{NONE}Type mismatch of '/prompt', 'string' not in 'number','integer', {M}"),
    ({"prompt": ["a"]}, f"{NONE}Type mismatch of '/prompt', 'string' not in 'array','binary', {M}"),
    ({"prompt": None}, f"{NONE}Type mismatch of '/prompt', 'string' not in 'null', {M}"),
    ({"messages": "x"}, f"{NONE}{P}, Type mismatch of '/messages', 'array' not in 'string'"),
    ({"messages": USER}, f"{NONE}{P}, required properties at '/messages/role' are 'role,content'"),
    (
        {"messages": [USER, {"role": "assistant", "content": None}]},
        f"{NONE}{P}, Type mismatch of '/messages/1/content', 'string' not in 'null'",
    ),
    ({"messages": [{"role": "user"}]}, f"{NONE}{P}, required properties at '/messages/0' are 'role,content'"),
    ({"messages": [{"content": "hi"}]}, f"{NONE}{P}, required properties at '/messages/0' are 'role,content'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        f"{NONE}{P}, Type mismatch of '/messages/0/content', 'string' not in 'array'",
    ),
    (
        {"messages": [{"role": "user", "content": ["hi"]}]},
        f"{NONE}{P}, Type mismatch of '/messages/0/content', 'string' not in 'array','binary'",
    ),
    (
        {"messages": [{"role": "user", "content": []}]},
        f"{NONE}{P}, Type mismatch of '/messages/0/content', 'string' not in 'array','binary'",
    ),
    (
        {"messages": [{"role": "user", "content": LONG}]},
        f"{NONE}{P}, Length of '/messages/0/content' must be <= 131072",
    ),
    *(
        ({"prompt": "hi", "max_tokens": value}, f"{NONE}Type mismatch of '/max_tokens', 'integer' not in {types}, {M}")
        for value, types in ((None, "'null'"), ("5", "'string'"), (1.5, "'number'"))
    ),
    *(
        ({"prompt": "hi", "stream": value}, f"{NONE}Type mismatch of '/stream', 'boolean' not in {types}, {M}")
        for value, types in (("true", "'string'"), (None, "'null'"), (1, "'number','integer'"))
    ),
    *(
        ({"prompt": "hi", name: value}, f"{NONE}{problem}, {M}")
        for name, value, problem in (
            ("temperature", 9, "'/temperature' must be <= 5"),
            ("temperature", -1, "'/temperature' must be >= 0"),
            ("temperature", "0.5", "Type mismatch of '/temperature', 'number' not in 'string'"),
            ("top_p", 3, "'/top_p' must be <= 2"),
            ("top_k", 0, "'/top_k' must be >= 1"),
            ("top_k", 51, "'/top_k' must be <= 50"),
            ("top_k", None, "Type mismatch of '/top_k', 'integer' not in 'null'"),
            ("seed", 0, "'/seed' must be >= 1"),
            ("seed", 99999999999, "'/seed' must be <= 9999999999"),
            ("seed", 1.5, "Type mismatch of '/seed', 'integer' not in 'number'"),
            ("repetition_penalty", 2.1, "'/repetition_penalty' must be <= 2"),
            ("frequency_penalty", -0.1, "'/frequency_penalty' must be >= 0"),
            ("presence_penalty", True, "Type mismatch of '/presence_penalty', 'number' not in 'boolean'"),
            ("raw", "true", "Type mismatch of '/raw', 'boolean' not in 'string'"),
            ("lora", 5, "Type mismatch of '/lora', 'string' not in 'number','integer'"),
        )
    ),
    ({"messages": [USER], "tools": "x"}, f"{NONE}{P}, Type mismatch of '/tools', 'array' not in 'string'"),
    (
        {"messages": [USER], "functions": [{"name": "f"}]},
        f"{NONE}{P}, required properties at '/functions/0' are 'name,code'",
    ),
    ({"requests": [{"prompt": "hi"}]}, f"{NONE}{P}, {M}"),
    ({"request_id": "x"}, f"{NONE}{P}, {M}"),
]


def refusal(payload: Any) -> str | None:
    """The message, or None when the payload passes."""
    try:
        validate(INPUT_SCHEMA, copy.deepcopy(payload))
    except SchemaMismatchError as error:
        return str(error)
    return None


@pytest.mark.parametrize("payload", PASSES, ids=lambda payload: json.dumps(payload)[:60])
def test_passes(payload: Any) -> None:
    assert refusal(payload) is None


@pytest.mark.parametrize(("payload", "message"), REFUSED, ids=[json.dumps(row[0])[:60] for row in REFUSED])
def test_refuses_in_the_hosted_wording(payload: Any, message: str) -> None:
    # Both branches check these before `required`: the same problem is then listed once, without the other branch's M.
    shared = re.search(r"'/(max_tokens|stream|temperature|top_p|top_k|seed|\w+_penalty)'", message)
    assert refusal(payload) == (message.removesuffix(f", {M}") if shared else message)


def test_both_branches_with_the_same_problem_list_it_once() -> None:
    assert refusal({"max_tokens": None}) == f"{NONE}Type mismatch of '/max_tokens', 'integer' not in 'null'"


def test_defaults_of_the_matching_branch_are_written() -> None:
    prompt: dict[str, Any] = {"prompt": "hi"}
    assert validate(INPUT_SCHEMA, prompt) == 0
    assert prompt == {"prompt": "hi", "raw": False, "stream": False, "max_tokens": 256, "temperature": 0.6}
    messages: dict[str, Any] = {"messages": [USER], "temperature": 0}
    assert validate(INPUT_SCHEMA, messages) == 1
    assert messages == {"messages": [USER], "temperature": 0, "stream": False, "max_tokens": 256}


def test_recorded_verdicts_of_the_original() -> None:
    recorded = json.loads((Path(__file__).parent / "cabidela_verdicts.json").read_text())
    assert len(recorded) >= 300
    for entry in recorded:
        assert refusal(entry["payload"]) == entry["error"], entry["payload"]


KEYS = st.text(max_size=4) | st.sampled_from(["role", "content", "0", "name", "type"])
SCALARS = st.none() | st.booleans() | st.integers(-(10**11), 10**11) | st.floats(allow_nan=False) | st.text(max_size=5)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=5
)
EXTRAS = ("stop", "response_format", "tool_choice", "min_p", "guided_json", "max_completion_tokens", "options")
FIELDS = (*INPUT_SCHEMA["oneOf"][0]["properties"], *INPUT_SCHEMA["oneOf"][1]["properties"], *EXTRAS)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": JSON})
NEARLY_GOOD = st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3)}, optional=dict.fromkeys(EXTRAS, JSON))
BODIES = JSON | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6) | NEARLY_GOOD


def outcome(payload: Any, *, is_strict: bool) -> Exception | None:
    """What the translation of a body raises; None when it yields exactly one of prompt and messages."""
    try:
        request = parse_native_request(
            payload, model="m", request_id="r", tenant="", config=ServerConfig(is_strict=is_strict)
        )
    except (ApiError, InvalidRequestError) as error:
        return error
    assert (request.generate.prompt is None) != (request.generate.messages is None)
    return None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BODIES, st.booleans())
def test_no_input_crashes_it_and_every_refusal_names_a_field(payload: Any, is_strict: bool) -> None:
    error = outcome(payload, is_strict=is_strict)
    if isinstance(error, InvalidRequestError):
        assert not is_strict
        assert error.field.split("/")[0] in str(error)
    elif isinstance(error, ApiError):
        assert error.code in (5005, 5006, 8001)
        assert error.code != 5006 or re.search(r"'/[^']*'|2 matches", str(error))


@given(st.text())
def test_length_counts_like_javascript(text: str) -> None:
    assert num_utf16_units(text) == sum(2 if ord(char) > 0xFFFF else 1 for char in text)
