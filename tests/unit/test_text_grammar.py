"""JSON schemas as grammars: what is enforced, what is refused by name, and that nothing is loosened."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import random
import threading
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from byte_vocabulary import (
    EOS,
    SPECIALS,
    VOCAB_SIZE,
    accepts,
    byte_compiler,
    byte_tokenizer,
    is_allowed,
    random_answer,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama3_vocabulary import load_llama3

from tampu.core.errors import InvalidRequestError, UnsupportedSchemaError
from tampu.text.grammar import GrammarCompiler, GrammarLimits

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "c": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["v"],
        }
    },
}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        (
            PERSON,
            ['{"name": "A", "age": 3}', '{"name":"é🦙\\n","age":0}'],
            ['{"name": "A"}', '{"name": "A", "age": -1}', "{}"],
        ),
        ({"type": "object"}, ['{"a": [1, {"b": null}]}', "{}"], ["[]", '{"a": 1', '{"a":  1}']),
        (True, ["1", '"x"', "[]", "null"], ["x"]),
        ({"enum": ["a", 2, None]}, ['"a"', "2", "null"], ['"b"', "3"]),
        ({"const": {"k": ["é"]}}, ['{"k": ["é"]}'], ['{"k": []}']),
        ({"type": ["string", "null"], "maxLength": 2}, ['"ab"', "null", '"🦙🦙"'], ['"abc"', "1"]),
        ({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, ["1", "true"], ['"x"', "1.5"]),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"x"'], ["true"]),
        ({"allOf": [{"minimum": 3}, {"maximum": 5}], "type": "integer"}, ["3", "5"], ["2", "6"]),
        ({"type": "integer"}, ["0", "-7", "9007199254740991"], ["1.5", "01", "9007199254740992", "1e3"]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1.5}, ["0.1", "1", "1.5"], ["0", "1.51", "-1"]),
        ({"type": "integer", "multipleOf": 7}, ["0", "14"], ["15"]),
        (
            {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
            ["[1]", "[1, 2]"],
            ["[]", "[1,2,3]"],
        ),
        ({"prefixItems": [{"type": "string"}], "items": False, "type": "array"}, ['["a"]', "[]"], ['["a", 1]', "[1]"]),
        (
            {"items": [{"type": "string"}], "additionalItems": {"type": "integer"}, "type": "array"},
            ['["a", 1]'],
            ['["a", "b"]'],
        ),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ['{"x": 1, "y": 2}'], ['{"x": "1"}']),
        (
            {"type": "object", "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False},
            ['{"x-a": 1}'],
            ['{"y": 1}'],
        ),
        (
            {"type": "object", "minProperties": 1, "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
            ['{"a": 1}', '{"b": 1}', '{"a": 1, "b": 2}'],
            ["{}", '{"a": "x"}'],
        ),
        (  # listed members are none, so it has to be others
            {"anyOf": [{"type": "object", "minProperties": 1, "properties": {"a": False}}, {"type": "null"}]},
            ['{"b": 1}', "null"],
            ["{}", '{"a": 1}'],
        ),
        ({"type": "object", "maxProperties": 1}, ["{}", '{"a": 1}'], ['{"a": 1, "b": 2}']),
        ({"type": "string", "format": "date"}, ['"2026-12-01"'], ['"today"', '"2026-13-01"']),
        ({"type": "string", "format": "int64"}, ['"anything"'], ["1"]),
        ({"type": "object", "properties": {"a": True}, "unevaluatedProperties": False}, ['{"a": 1}'], ['{"b": 1}']),
        (TREE, ['{"v": 1, "c": [{"v": 2}, {"v": 3, "c": []}]}'], ['{"c": []}', '{"v": 1, "c": [{}]}']),
        ({"properties": {"a": {"not": {}}, "b": {}}, "type": "object"}, ['{"b": 1}'], ['{"a": 1}']),
        ({"type": "object", "properties": {"$ref": {"type": "string"}}}, ['{"$ref": "x"}'], ['{"$ref": 1}']),
    ],
)
def test_enforced(schema: Any, valid: list[str], invalid: list[str]) -> None:
    grammar = byte_compiler().json_schema(schema)
    assert [text for text in valid if not accepts(grammar, text)] == []
    assert [text for text in invalid if accepts(grammar, text)] == []


@pytest.mark.parametrize(
    ("schema", "keyword", "path"),
    [
        ({"not": {"type": "string"}}, "not", ""),
        ({"properties": {"a": {"if": {}, "then": {}}}}, "if", "/properties/a"),
        ({"type": "array", "contains": {"type": "string"}}, "contains", ""),
        ({"type": "array", "contains": {}}, "contains", ""),
        ({"type": "array", "contains": {}, "minContains": 2}, "contains", ""),
        ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, "uniqueItems", "/items"),
        ({"propertyNames": {"pattern": "^a"}}, "propertyNames", ""),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired", ""),
        ({"dependencies": {"a": ["b"]}}, "dependencies", ""),
        ({"allOf": [{"properties": {}}], "unevaluatedProperties": False}, "unevaluatedProperties", ""),
        ({"anyOf": [{"items": {}}], "unevaluatedItems": False}, "unevaluatedItems", ""),
        ({"$dynamicRef": "#a"}, "$dynamicRef", ""),
        ({"minProperties": 2}, "minProperties", ""),
        (
            {"type": "object", "minProperties": 1, "properties": {"a": {}}, "additionalProperties": True},
            "minProperties",
            "",
        ),
        ({"type": "object", "maxProperties": 1, "properties": {"a": {}}}, "maxProperties", ""),
        (
            {"oneOf": [{"type": "object", "minProperties": 1, "properties": {name: {}}} for name in "ab"]},
            "minProperties",
            "/oneOf/0",
        ),
        ({"$ref": "http://example.com/s.json"}, "$ref", ""),
        ({"$ref": "file:///etc/passwd"}, "$ref", ""),
        ({"$ref": "#/$defs/none"}, "$ref", ""),
        ({"$ref": "#anchor"}, "$ref", ""),
        ({"$ref": "#"}, "$ref", ""),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {}]}}}, "$ref", ""),
        ({"properties": {"a": {"$id": "x"}, "b": {"$ref": "#/properties/a"}}}, "$id", "/properties/b"),
        ({"type": "text"}, "type", ""),
        ({"enum": []}, "enum", ""),
        ({"const": "a\x00b"}, "const", ""),
        ({"enum": ["\ud800"]}, "enum", ""),
        ({"minLength": -1}, "minLength", ""),
        ({"maxItems": "3"}, "maxItems", ""),
        ({"minimum": True}, "minimum", ""),
        ({"exclusiveMinimum": True, "minimum": 1}, "exclusiveMinimum", ""),
        ({"maximum": 1e30}, "maximum", ""),
        ({"multipleOf": 0}, "multipleOf", ""),
        ({"properties": {"a/b": {"pattern": "(?=x)"}}}, "pattern", "/properties/a~1b"),
        ({"patternProperties": {"(": {}}}, "patternProperties", ""),
        ({"type": "object", "patternProperties": {"a": {}, "b": {}}}, "patternProperties", ""),
        ({"format": "regex"}, "format", ""),
        ({"properties": []}, "properties", ""),
        ({"required": "a"}, "required", ""),
        ({"items": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}, "oneOf", "/items"),
        ({"anyOf": []}, "anyOf", ""),
        ({"items": 3}, "", "/items"),
        (False, "", ""),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "", ""),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength", ""),
        ({"x-guidance": {"lenient": True}, "not": {"type": "string"}}, "not", ""),
    ],
)
def test_refused_by_keyword_and_path(schema: Any, keyword: str, path: str) -> None:
    with pytest.raises(UnsupportedSchemaError) as caught:
        byte_compiler().json_schema(schema)
    assert (caught.value.keyword, caught.value.path) == (keyword, path)
    assert isinstance(caught.value, InvalidRequestError)
    assert path in str(caught.value)


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE: dict[str, Any] = {
    "deep": nested(70),
    "very deep": nested(20_000),
    "deep value": {"const": json.loads("[" * 200 + "]" * 200)},
    "many values": {"enum": list(range(6_000))},
    "large": {"enum": ["x" * 1000 + str(i) for i in range(600)]},
    "long name": {"properties": {"x" * 20_000: {}}},
    "many properties": {"properties": {f"p{i}": {} for i in range(301)}},
    "many pattern properties": {"patternProperties": {f"^{i}x": {} for i in range(17)}},
    "many schemas": {"anyOf": [{"type": "object", "properties": {f"p{i}": {} for i in range(50)}} for _ in range(50)]},
    "nested repeats": {"type": "string", "pattern": "((a{1,99}){1,99}){1,99}"},
    "many patterns": {"anyOf": [{"type": "string", "pattern": "a" * 1900} for _ in range(11)]},
    "branches of branches": {
        "allOf": [{"anyOf": [{"required": [f"{i}{j}"], "type": "object"} for j in range(6)]} for i in range(12)]
    },
    "recursive intersection": {
        "$defs": {"n": {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}}},
        "allOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}],
    },
    "patterns at once": {"type": "string", "allOf": [{"pattern": f"{c}.*{c}.{{3}}"} for c in "abcdefghij"]},
    "large multiple": {"type": "integer", "multipleOf": 999_999_937},
    "not json": {"const": float("nan")},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedSchemaError):
        byte_compiler().json_schema(HOSTILE[name])


def test_too_many_branches_within_branches_are_refused_in_our_words() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(63):
        schema = {"anyOf": [schema, {"type": "null"}]}
    with pytest.raises(
        UnsupportedSchemaError, match=r"branches within branches are nested too deeply; move .* '\$defs'"
    ):
        byte_compiler().json_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a|b)*a(a|b){20}$"},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
        {"type": "string", "minLength": 10**9},
        {"type": "string", "pattern": "^(([a-z]{0,99}x){0,99})$"},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(300)}},
    ],
)
def test_costly_schemas_stay_bounded_or_fail_alone(schema: Any) -> None:
    grammar = byte_compiler().json_schema(schema)
    matching, rng = grammar.new_matching(), random.Random(1)
    for _ in range(200):
        mask = matching.next_mask()
        allowed = [token_id for token_id in range(VOCAB_SIZE) if is_allowed(mask, token_id)]
        if not allowed or allowed == [EOS]:
            assert allowed or grammar.has_failed
            break
        matching.accept(rng.choice([i for i in allowed if i != EOS]))
    assert matching.next_mask() is not None


def test_a_grammar_that_hits_a_limit_allows_nothing_and_is_compiled_anew() -> None:
    compiler = GrammarCompiler(byte_tokenizer(), limits=GrammarLimits(max_lexer_states=50))
    schema = {"type": "string", "pattern": "^[ab]*a[ab]{30}c$"}
    grammar = compiler.json_schema(schema)
    matching = grammar.new_matching()
    rng = random.Random(3)
    masks = []
    for byte in [ord('"'), *(rng.choice(b"ab") for _ in range(200))]:
        masks.append(bytes(matching.next_mask() or b""))
        matching.accept(byte)
    assert not any(masks[-1] or b"1")
    assert grammar.has_failed
    assert compiler.json_schema(schema) is not grammar


# --- nothing is loosened ----------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "name", "é", "x y", "$id", "type", "a/b", 'q"'])
BOUNDS = st.integers(-50, 50)


def strings() -> st.SearchStrategy[dict[str, Any]]:
    plain = st.fixed_dictionaries(
        {"type": st.just("string")}, optional={"minLength": st.integers(0, 3), "maxLength": st.integers(3, 6)}
    )
    pattern = st.sampled_from(["^[a-z]+$", r"^\d{2}", "b|c$", "^$", r"\.", "^[^a]{2,4}$", "^(ab|c)*$"])
    return st.one_of(plain, pattern.map(lambda p: {"type": "string", "pattern": p}))


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    def with_bounds(kind: str, low: int, width: int, keys: tuple[str, str], multiple: int | None) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": kind, keys[0]: low, keys[1]: low + width}
        return schema | ({"multipleOf": multiple} if multiple else {})

    kinds = st.sampled_from(["integer", "number"])
    keys = st.tuples(st.sampled_from(["minimum", "exclusiveMinimum"]), st.sampled_from(["maximum", "exclusiveMaximum"]))
    bounded = st.builds(with_bounds, kinds, BOUNDS, st.integers(4, 90), keys, st.sampled_from([None, None, 2]))
    half = st.builds(
        lambda kind, key, bound: {"type": kind, key: bound},
        kinds,
        st.sampled_from(["minimum", "maximum"]),
        st.one_of(BOUNDS, st.floats(-9, 9).map(lambda x: round(x, 2))),
    )
    return st.one_of(bounded, half, kinds.map(lambda kind: {"type": kind}))


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), BOUNDS, st.text('aé\n"\\/🦙', max_size=3), st.sampled_from([0.5, -2.25])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES, inner, max_size=2)),
    max_leaves=4,
)


def composites(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def an_object(properties: dict[str, Any], data: list[bool], other: Any) -> dict[str, Any]:
        required = [name for name, is_required in zip(properties, [*data, *[False] * 9], strict=False) if is_required]
        schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        return schema if other is None else schema | {"additionalProperties": other}

    objects = st.builds(
        an_object,
        st.dictionaries(NAMES, inner, max_size=3),
        st.lists(st.booleans(), max_size=3),
        st.one_of(st.none(), st.booleans(), inner),
    )
    arrays = st.builds(
        lambda items, low, width: {"type": "array", "items": items, "minItems": low, "maxItems": low + width},
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    tuples = st.builds(
        lambda first, rest: {"type": "array", "prefixItems": first, "items": rest, "maxItems": 4},
        st.lists(inner, min_size=1, max_size=2),
        st.one_of(st.just(False), inner),
    )
    unions = st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches})
    both = st.tuples(inner, inner).map(lambda pair: {"allOf": list(pair)})
    beside = st.tuples(objects, unions).map(lambda pair: {**pair[0], **pair[1]})
    maps = st.builds(
        lambda value, most: {"type": "object", "additionalProperties": value, "maxProperties": most},
        inner,
        st.integers(0, 2),
    )
    exclusive = st.lists(inner, min_size=1, max_size=2).map(lambda branches: {"oneOf": branches})
    return st.one_of(objects, objects, arrays, tuples, unions, both, beside, maps, exclusive)


@pytest.mark.parametrize("depth", [0, 17, 18, 19, 20, 38, 39, 40])
def test_branches_that_a_const_tells_apart_are_accepted_at_any_depth(depth: int) -> None:
    schema: Any = {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]} for kind in ("a", "b")
        ]
    }
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    byte_compiler().json_schema(schema)


LEAVES = st.one_of(
    strings(),
    numbers(),
    st.sampled_from(
        [{"type": "boolean"}, {"type": "null"}, True, {}, {"type": ["string", "null"]}, {"$ref": "#/$defs/t"}]
    ),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
)
SCHEMAS = st.recursive(LEAVES, composites, max_leaves=8)
DEFINITION = {"type": "object", "properties": {"t": {"$ref": "#/$defs/t"}, "n": {"type": "integer"}}, "required": ["n"]}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS, st.integers(0, 2**32))
def test_random_logits_under_any_schema_give_a_valid_value(schema: Any, seed: int) -> None:
    document = schema if isinstance(schema, bool) else {**schema, "$defs": {"t": DEFINITION}}
    try:
        grammar = byte_compiler().json_schema(document)
    except UnsupportedSchemaError:
        return
    for turn in range(3):
        value = json.loads(random_answer(grammar, random.Random(seed + turn)))
        jsonschema.Draft202012Validator(document).validate(value)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.integers(0, 2**32))
def test_any_value_of_an_enum_can_be_written(value: Any, seed: int) -> None:
    grammar = byte_compiler().json_schema({"enum": [value]})
    assert json.loads(random_answer(grammar, random.Random(seed))) == value


def test_a_taken_name_cannot_be_written_again_in_another_spelling() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    grammar = byte_compiler().json_schema(schema)
    assert accepts(grammar, '{"a": 1, "b": "x"}')
    assert not accepts(grammar, '{"a": 1, "a": "x"}')
    assert not accepts(grammar, '{"a": 1, "\\u0061": "x"}')
    assert not accepts(grammar, '{"\\u0061": "x"}')


def test_dates_exist() -> None:
    grammar = byte_compiler().json_schema({"type": "string", "format": "date"})
    for year, month, day in itertools.product(
        (0, 1, 4, 100, 400, 1900, 2000, 2023, 2024), range(14), (0, 1, 28, 29, 30, 31, 32)
    ):
        text = f"{year:04}-{month:02}-{day:02}"
        try:
            datetime.date.fromisoformat(text)
        except ValueError:
            assert not accepts(grammar, f'"{text}"')
        else:
            assert accepts(grammar, f'"{text}"')
    both = byte_compiler().json_schema({"type": "string", "format": "date-time", "pattern": "^2026"})
    assert accepts(both, '"2026-12-31T23:59:59.5+01:00"')
    assert not accepts(both, '"2025-12-31T23:59:59Z"')
    assert not accepts(both, '"2026-12-31T23:59:60Z"')


def test_objects_that_list_properties_get_no_others() -> None:
    grammar = byte_compiler().json_schema(PERSON)
    assert not accepts(grammar, '{"name": "A", "age": 3, "more": 1}')
    open_schema = PERSON | {"additionalProperties": True}
    assert accepts(byte_compiler().json_schema(open_schema), '{"name": "A", "age": 3, "more": 1}')
    parts = {
        "allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}],
        "type": "object",
    }
    assert accepts(byte_compiler().json_schema(parts), '{"a": 1, "b": 2}')
    discriminated = {
        "oneOf": [
            {"properties": {"k": {"const": name}, name: {"type": "integer"}}, "required": ["k"], "type": "object"}
            for name in ("p", "q")
        ]
    }
    grammar = byte_compiler().json_schema(discriminated)
    assert accepts(grammar, '{"k": "p", "p": 1}')
    assert not accepts(grammar, '{"k": "p", "q": 1}')


# --- the constraint ---------------------------------------------------------------------------------------------


def test_the_end_is_allowed_only_where_the_grammar_may_end() -> None:
    matching = byte_compiler().json_schema({"type": "integer", "minimum": 10, "maximum": 99}).new_matching()
    for position, byte in enumerate(b"42"):
        mask = matching.next_mask()
        assert is_allowed(mask, byte)
        assert not is_allowed(mask, EOS)
        assert not any(is_allowed(mask, token_id) for token_id in range(EOS, VOCAB_SIZE)), position
        matching.accept(byte)
    mask = matching.next_mask()
    assert [token_id for token_id in range(len(mask or b"") * 8) if is_allowed(mask, token_id)] == [EOS]
    assert mask is not None
    assert len(mask) == (VOCAB_SIZE + 31) // 32 * 4
    matching.accept(EOS)
    assert is_allowed(matching.next_mask(), EOS)


def test_special_tokens_are_not_allowed_inside_strings() -> None:
    matching = byte_compiler().json_schema({"type": "string"}).new_matching()
    matching.accept(ord('"'))
    mask = matching.next_mask()
    assert all(is_allowed(mask, byte) for byte in b"a{<|\xc3")
    assert not any(is_allowed(mask, EOS + i) for i in range(len(SPECIALS)))


@cache
def llama3_compiler() -> GrammarCompiler:
    return GrammarCompiler(load_llama3())


@pytest.mark.parametrize("schema", [PERSON, TREE, {"type": "object", "properties": {"a": {"enum": ["né", 1]}}}])
def test_random_tokens_of_a_real_vocabulary_give_a_valid_value(schema: Any) -> None:
    tokenizer = load_llama3()
    grammar = llama3_compiler().json_schema(schema)
    generator = np.random.default_rng(7)
    closing = [*tokenizer.eos_token_ids, *(tokenizer.encode(text)[0] for text in ('"', "}", "]"))]
    for _ in range(5):
        matching, written = grammar.new_matching(), []
        for position in range(500):
            allowed = np.flatnonzero(
                np.unpackbits(np.frombuffer(matching.next_mask() or b"", np.uint8), bitorder="little")
            )
            ending = [token_id for token_id in closing if token_id in allowed] if position > 20 else []
            token_id = int(ending[0] if ending else generator.choice(allowed))
            if token_id in tokenizer.eos_token_ids:
                break
            assert not tokenizer.is_special(token_id)
            written.append(token_id)
            matching.accept(token_id)
        jsonschema.Draft202012Validator(schema).validate(json.loads(tokenizer.decode(written)))


def test_constraints_of_one_grammar_are_independent() -> None:
    grammar = byte_compiler().json_schema({"enum": ["ab", "cd"]})
    first, second = grammar.new_constraint(500), grammar.new_constraint(500)
    for byte in b'"a':
        first.accept(byte)
    second.accept(ord('"'))
    assert is_allowed(first.next_mask(), ord("b"))
    assert not is_allowed(second.next_mask(), ord("b"))
    assert is_allowed(second.next_mask(), ord("c"))


# --- the compiler -----------------------------------------------------------------------------------------------


def test_grammars_are_kept_within_a_bound() -> None:
    compiler = GrammarCompiler(byte_tokenizer(), limits=GrammarLimits(cache_bytes=1_000_000))
    first = compiler.json_schema({"type": "integer"})
    assert compiler.json_schema({"type": "integer"}) is first
    for i in range(10):
        compiler.json_schema({"const": i})
    assert compiler.json_schema({"type": "integer"}) is not first
    assert compiler.cached_bytes <= 1_000_000


async def test_compiling_leaves_the_event_loop_free() -> None:
    compiler = GrammarCompiler(byte_tokenizer())
    loop_thread = threading.get_ident()
    threads = []

    def make(c: GrammarCompiler) -> Any:
        threads.append(threading.get_ident())
        return c.json_schema(PERSON)

    grammars = await asyncio.gather(*(compiler.compile(make) for _ in range(5)))
    assert loop_thread not in threads
    assert all(accepts(grammar, '{"name": "A", "age": 3}') for grammar in grammars)
    with pytest.raises(UnsupportedSchemaError):
        await compiler.compile(lambda c: c.json_schema({"not": {"type": "string"}}))
    compiler.close()


async def test_waiting_for_a_thread_does_not_count_as_compiling() -> None:
    compiler = GrammarCompiler(byte_tokenizer(), limits=GrammarLimits(compile_seconds=0.3))
    release = threading.Event()

    def slow(c: GrammarCompiler) -> Any:
        release.wait(30)
        return c.json_object()

    slow_ones = [asyncio.ensure_future(compiler.compile(slow)) for _ in range(2)]
    quick = asyncio.ensure_future(compiler.compile(lambda c: c.json_schema(PERSON)))
    for refused in slow_ones:
        with pytest.raises(UnsupportedSchemaError):
            await refused
    assert not quick.done()
    release.set()
    assert accepts(await quick, '{"name": "A", "age": 3}')
    compiler.close()


async def test_compiling_for_too_long_is_refused() -> None:
    compiler = GrammarCompiler(byte_tokenizer(), limits=GrammarLimits(compile_seconds=0.01))
    release = threading.Event()

    def slow(c: GrammarCompiler) -> Any:
        release.wait(30)
        return c.json_object()

    with pytest.raises(UnsupportedSchemaError, match=r"takes longer than 0\.01 s"):
        await compiler.compile(slow)
    release.set()
    compiler.close()
