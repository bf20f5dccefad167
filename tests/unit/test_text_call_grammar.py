"""Tool calls by grammar: forced ones are always valid, automatic ones only from where a call begins."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import jsonschema
import pytest
from byte_vocabulary import EOS, VOCAB_SIZE, accepts, byte_compiler, byte_spellings, is_allowed, random_answer
from hypothesis import given, settings
from hypothesis import strategies as st
from llama3_vocabulary import load_llama3

from tampu.core.chat import Message, ToolCall, ToolSpec
from tampu.core.errors import UnsupportedSchemaError
from tampu.core.tokenizer_spec import TokenizerSpec
from tampu.text.call_grammar import auto_calls, forced_calls
from tampu.text.chat_template import call_json, chat_template
from tampu.text.grammar import GrammarCompiler
from tampu.text.segments import Special
from tampu.text.tokenizer import load_tokenizer
from tampu.text.tool_calls import ToolCallPiece, parse_tool_calls

WEATHER = ToolSpec(
    "get_weather",
    "",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city"],
    },
)
NOW = ToolSpec("now")
TREE = ToolSpec(
    "tree",
    "",
    {
        "$defs": {"n": {"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}},
        "properties": {"root": {"$ref": "#/$defs/n"}},
        "required": ["root"],
    },
)
TOOLS = [WEATHER, NOW, TREE]
KINDS = ["llama3", "chatml", "none"]


@pytest.mark.parametrize(
    ("kind", "parallel", "text", "is_valid"),
    [
        ("llama3", False, '{"name": "get_weather", "parameters": {"city": "Cusco"}}', True),
        ("llama3", False, '{"name":"now","parameters":{}}', True),
        ("llama3", False, '{"name": "tree", "parameters": {"root": {"c": [{}]}}}', True),
        ("llama3", False, '{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}', False),
        ("llama3", True, '{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}', True),
        ("llama3", True, '{"name": "get_weather", "parameters": {}}', False),
        ("llama3", True, '{"name": "get_weather", "parameters": {"city": "C", "days": 10}}', False),
        ("llama3", True, '{"name": "now", "parameters": {"x": 1}}', False),
        ("llama3", True, '{"name": "other", "parameters": {}}', False),
        ("llama3", True, "Sure.", False),
        ("llama3", True, "", False),
        ("chatml", False, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', True),
        (
            "chatml",
            True,
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',  # noqa: E501
            True,
        ),
        ("chatml", False, '{"name": "now", "arguments": {}}', False),
        ("none", False, '{"name": "now", "arguments": {}}', True),
    ],
)
def test_forced(kind: str, parallel: bool, text: str, is_valid: bool) -> None:
    assert accepts(forced_calls(byte_compiler(), TOOLS, kind=kind, parallel=parallel), text) is is_valid


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), parallel=st.booleans())
def test_forced_calls_by_random_logits_are_valid_calls(kind: str, seed: int, parallel: bool) -> None:
    grammar = forced_calls(byte_compiler(), TOOLS, kind=kind, parallel=parallel)
    pieces = parse_tool_calls(random_answer(grammar, random.Random(seed)), TOOLS)
    calls = [piece.call for piece in pieces if isinstance(piece, ToolCallPiece)]
    assert len(calls) == len(pieces) >= 1
    assert parallel or len(calls) == 1
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    for call in calls:
        jsonschema.Draft202012Validator(schemas[call.name]).validate(call.arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_template_writes_of_a_call_is_what_the_grammar_allows(kind: str) -> None:
    calls = (ToolCall("get_weather", {"city": "Cusco", "days": 2}), ToolCall("now", {}))
    segments = chat_template(kind).render([Message("assistant", "", calls)], add_generation_prompt=False)
    prompt = "".join(part.name if isinstance(part, Special) else part.text for part in segments)
    first = call_json(calls[0], "parameters" if kind == "llama3" else "arguments")
    last = call_json(calls[1], "parameters" if kind == "llama3" else "arguments")
    start, end = prompt.index(first), prompt.rindex(last) + len(last)
    if kind == "chatml":
        start, end = start - len("<tool_call>\n"), end + len("\n</tool_call>")
    assert accepts(forced_calls(byte_compiler(), TOOLS, kind=kind, parallel=True), prompt[start:end])


def test_a_repeated_call_is_the_last() -> None:
    constraint = forced_calls(byte_compiler(), TOOLS, kind="llama3", parallel=True).new_constraint(500)
    now = b'{"name": "now", "parameters": {}}'
    weather = b'{"name": "get_weather", "parameters": {"city": "A"}}'
    walk(constraint, list(now + b"; " + weather))
    mask = constraint.next_mask()
    assert is_allowed(mask, ord(";"))
    assert is_allowed(mask, EOS)
    walk(constraint, list(b"; " + now))
    mask = constraint.next_mask()
    assert [token_id for token_id in range(VOCAB_SIZE) if is_allowed(mask, token_id)] == [EOS]


def test_a_tool_whose_schema_cannot_be_enforced_is_refused_by_its_path() -> None:
    bad = ToolSpec("bad", "", {"type": "object", "properties": {"a": {"not": {"type": "string"}}}})
    for make in (forced_calls, auto_calls):
        with pytest.raises(UnsupportedSchemaError) as caught:
            make(byte_compiler(), [NOW, bad], kind="llama3", parallel=True)
        assert (caught.value.field, caught.value.keyword) == ("tools/1/parameters", "not")
        assert caught.value.path == "/tools/1/parameters/properties/a"
        assert str(caught.value).startswith("tool 'bad': keyword 'not' at /tools/1/parameters/properties/a: ")
    with pytest.raises(UnsupportedSchemaError, match="parameters of a tool are an object"):
        forced_calls(byte_compiler(), [ToolSpec("x", "", {"type": "string"})], kind="llama3", parallel=False)


IMPOSSIBLE = {"type": "object", "properties": {"a": False}, "required": ["a"]}
OVERLAPPING = {"type": "object", "properties": {"a": {"oneOf": [{"type": "string"}, {"type": "string"}]}}}


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (
            [ToolSpec("x", "", IMPOSSIBLE, "functions/3/parameters")],
            "tool 'x': the schema at /functions/3/parameters: no value satisfies the schema",
        ),
        (
            [ToolSpec("x", "", IMPOSSIBLE, "tools/4/parameters"), ToolSpec("y", "", IMPOSSIBLE, "tools/7/parameters")],
            "the tools 'x' at /tools/4/parameters, 'y' at /tools/7/parameters together: no value satisfies the schema",
        ),
        (
            [NOW, ToolSpec("y", "", OVERLAPPING, "tools/7/parameters")],
            "tool 'y': keyword 'oneOf' at /tools/7/parameters/properties/a: its branches cannot be shown to exclude"
            " each other; give each its own 'const', or use 'anyOf'",
        ),
    ],
)
def test_an_error_names_the_tool_and_where_the_client_wrote_it(tools: list[ToolSpec], message: str) -> None:
    with pytest.raises(UnsupportedSchemaError) as caught:
        forced_calls(byte_compiler(), tools, kind="llama3", parallel=False)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("parameters", "arguments", "is_valid"),
    [
        ({"type": "object", "properties": {}}, "{}", True),
        ({"type": "object", "properties": {}}, '{"a": 1}', False),
        ({"properties": {}}, '{"a": 1}', False),
        ({"type": "object", "properties": {}, "required": []}, '{"a": 1}', False),
        ({"type": "object", "properties": {}, "additionalProperties": {}}, '{"a": 1}', True),
        ({"type": "object"}, '{"a": 1}', True),
        ({"type": "object", "properties": {}, "additionalProperties": True}, '{"a": 1}', True),
        ({"type": "object", "properties": {}, "required": ["a"]}, '{"a": 1}', True),
        ({"type": "object", "properties": {}, "anyOf": [{"required": ["a"]}]}, '{"a": 1}', True),
        ({"properties": {"a": {"type": "object", "properties": {}}}}, '{"a": {"b": 1}}', True),
    ],
)
def test_empty_properties_mean_no_arguments(parameters: dict[str, Any], arguments: str, is_valid: bool) -> None:
    grammar = forced_calls(byte_compiler(), [ToolSpec("f", "", parameters)], kind="llama3", parallel=False)
    assert accepts(grammar, f'{{"name": "f", "parameters": {arguments}}}') is is_valid


@pytest.mark.parametrize("has_branches", [False, True])
def test_arguments_may_be_as_deep_as_any_schema(has_branches: bool) -> None:
    parameters: dict[str, Any] = {"type": "integer"}
    value = "7"
    for level in range(63):
        if has_branches and level % 2:
            parameters = {"anyOf": [parameters, {"type": "null"}]}
        else:
            parameters = {"type": "object", "properties": {"a": parameters}, "required": ["a"]}
            value = f'{{"a": {value}}}'
    compiler = byte_compiler()
    calls = forced_calls(compiler, [ToolSpec("f", "", parameters)], kind="llama3", parallel=False)
    assert accepts(calls, f'{{"name": "f", "parameters": {value}}}')
    assert not accepts(calls, f'{{"name": "f", "parameters": {value.replace("7", "true")}}}')
    assert accepts(compiler.json_schema(parameters), value)
    with pytest.raises(UnsupportedSchemaError, match="nested more than 64 deep"):
        compiler.json_schema({"items": {"items": parameters}})


@pytest.mark.parametrize(
    ("tool", "field", "what"),
    [
        (ToolSpec("a\x07"), "tools/0/name", "keyword 'name' at /tools/0"),
        (ToolSpec("a\x07", "", {}, "tools/2/function/parameters"), "tools/2/function/name", "at /tools/2/function"),
        (ToolSpec("a\x07", "", {}, "functions/1/code"), "functions/1/name", "keyword 'name' at /functions/1"),
        (ToolSpec("x" * 10_001), "tools/0/name", "a string is longer than 10000 characters"),
        (ToolSpec("f", "", {"properties": {"a\x07": {}}}), "tools/0/parameters", "keyword 'properties'"),
        (ToolSpec("f", "", {"properties": {"a": {"const": "\x07"}}}), "tools/0/parameters", "keyword 'const'"),
    ],
)
def test_names_that_no_grammar_can_write_are_refused(tool: ToolSpec, field: str, what: str) -> None:
    with pytest.raises(UnsupportedSchemaError, match=r"^tool '") as caught:
        forced_calls(byte_compiler(), [tool], kind="llama3", parallel=False)
    assert caught.value.field == field
    assert what in str(caught.value)


# --- auto -------------------------------------------------------------------------------------------------------


def walk(constraint: Any, ids: list[int]) -> list[bool]:
    """For each token, whether it was written under a mask. Every token must have been allowed."""
    masked = []
    for token_id in ids:
        mask = constraint.next_mask()
        assert is_allowed(mask, token_id)
        masked.append(mask is not None)
        constraint.accept(token_id)
    return masked


def spelled(ids: list[int], masked: list[bool]) -> str:
    """The text that was written under a mask."""
    return load_llama3().decode([token_id for token_id, is_masked in zip(ids, masked, strict=True) if is_masked])


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(load_llama3())


def test_auto_is_free_until_a_call_begins_and_free_again_after_it(compiler: GrammarCompiler) -> None:
    constraint = auto_calls(compiler, TOOLS, kind="llama3", parallel=True).new_constraint(500)
    text = (
        'Let me see. {"name": "get_weather", "parameters": {"city": "Cusco"}} Then {"name": "now", "parameters": {}} ok'
    )
    ids = load_llama3().encode(text)
    under_mask = spelled(ids, walk(constraint, ids))
    assert '"city": "Cusco"}}' in under_mask
    assert "{}}" in under_mask
    for word in ("see", "get_weather", "Then", "now", "ok"):
        assert word not in under_mask
    assert constraint.next_mask() is None


def test_auto_allows_only_valid_arguments(compiler: GrammarCompiler) -> None:
    constraint = auto_calls(compiler, TOOLS, kind="llama3", parallel=True).new_constraint(500)
    walk(constraint, load_llama3().encode('{"name": "get_weather", "parameters": {"'))
    mask = constraint.next_mask()
    assert is_allowed(mask, load_llama3().encode("city")[0])
    assert not is_allowed(mask, load_llama3().encode("town")[0])
    assert not any(is_allowed(mask, token_id) for token_id in range(128_000, 128_256))


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob", "age": 3}',
        '{"name": "get_weather_now", "x": 1}',
        '{"a": {"name": 1}}',
        "f{x} {{name}} }{",
        '{"name": "n',
    ],
)
def test_auto_leaves_other_json_alone(compiler: GrammarCompiler, text: str) -> None:
    constraint = auto_calls(compiler, TOOLS, kind="llama3", parallel=True).new_constraint(500)
    assert not any(walk(constraint, load_llama3().encode(text)))
    assert constraint.next_mask() is None


def test_auto_after_python_tag_is_constrained_at_once(compiler: GrammarCompiler) -> None:
    constraint = auto_calls(compiler, TOOLS, kind="llama3", parallel=True).new_constraint(500)
    python_tag = load_llama3().special_id("<|python_tag|>")
    ids = load_llama3().encode('{"name": "now", "parameters": {}}')
    assert walk(constraint, [python_tag, *ids]) == [False, *([True] * len(ids))]


def test_auto_without_parallel_calls_ends_after_the_first(compiler: GrammarCompiler) -> None:
    constraint = auto_calls(compiler, TOOLS, kind="llama3", parallel=False).new_constraint(500)
    walk(constraint, load_llama3().encode('{"name": "now", "parameters": {}}'))
    mask = constraint.next_mask()
    assert [token_id for token_id in range(128_256) if is_allowed(mask, token_id)] == [128_001, 128_008, 128_009]


@pytest.mark.parametrize(
    "text",
    [
        'On it.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call> Done',
        '<tool_call>{"name":"now","arguments":{}}\n</tool_call>',
        '{"type": "function", "name": "now", "arguments": {}} and <b>',
    ],
)
def test_auto_for_chatml(text: str) -> None:
    constraint = auto_calls(byte_compiler(), TOOLS, kind="chatml", parallel=True).new_constraint(500)
    masked = walk(constraint, list(text.encode()))
    assert any(masked)
    assert not masked[0]
    assert constraint.next_mask() is None


CALL = b'{"name": "now", "parameters": {}}'


@cache
def compiler_with_long_tokens() -> GrammarCompiler:
    """Bytes, and every run of up to twelve bytes of one call."""
    runs = {CALL[i : i + n] for n in range(2, 13) for i in range(len(CALL) - n + 1)}
    spellings = byte_spellings()
    tokens = [*spellings, *("".join(spellings[byte] for byte in run) for run in sorted(runs)), "<|eot_id|>"]
    spec = TokenizerSpec(
        pre_tokenizer="gpt-2",
        tokens=tuple(tokens),
        token_types=(*([1] * (len(tokens) - 1)), 3),
        eos_token_ids=(len(tokens) - 1,),
    )
    return GrammarCompiler(load_tokenizer(spec))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=len(CALL), max_size=len(CALL)))
def test_auto_begins_at_the_same_place_however_tokens_are_cut(lengths: list[int]) -> None:
    """A token may hold the end of the name and more: what follows the name is checked all the same."""
    compiler = compiler_with_long_tokens()
    ids = {compiler.tokenizer.token_bytes(i): i for i in range(compiler.tokenizer.num_tokens)}
    constraint = auto_calls(compiler, TOOLS, kind="llama3", parallel=True).new_constraint(500)
    position = 0
    while position < len(CALL):
        is_masked = constraint.next_mask() is not None
        # What the grammar forces, it allows only as the tokenizer would cut it: here, into bytes.
        piece = CALL[position : position + (1 if is_masked else lengths.pop())]
        assert is_masked == (position >= len(b'{"name": "now"'))
        assert is_allowed(constraint.next_mask(), ids[piece])
        constraint.accept(ids[piece])
        position += len(piece)
    assert constraint.next_mask() is None


def test_a_token_that_goes_astray_after_the_name_leaves_the_text_free() -> None:
    constraint = auto_calls(byte_compiler(), TOOLS, kind="llama3", parallel=True).new_constraint(500)
    walk(constraint, list(b'{"name": "now"'))
    assert constraint.next_mask() is not None
    tokens = [*byte_spellings(), '"x', "<|eot_id|>"]
    spec = TokenizerSpec(
        pre_tokenizer="gpt-2", tokens=tuple(tokens), token_types=(*([1] * 257), 3), eos_token_ids=(257,)
    )
    compiler = GrammarCompiler(load_tokenizer(spec))
    constraint = auto_calls(compiler, TOOLS, kind="llama3", parallel=True).new_constraint(500)
    walk(constraint, [*b'{"name": "now', 256])
    assert constraint.next_mask() is None


def test_masks_are_as_long_as_the_embedding(compiler: GrammarCompiler) -> None:
    for used, rows in ((byte_compiler(), VOCAB_SIZE), (compiler, 128_256)):
        mask = forced_calls(used, TOOLS, kind="llama3", parallel=False).new_constraint(500).next_mask()
        assert mask is not None
        assert len(mask) == (rows + 31) // 32 * 4
        assert not is_allowed(mask, EOS)
