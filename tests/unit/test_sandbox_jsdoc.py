"""What is read from a function's source: JSDoc, destructuring, both, and sources that try to break the reader."""

from __future__ import annotations

import random
from typing import Any

import jsonschema
import pytest

from tampu.core.chat import ToolSpec
from tampu.core.errors import InvalidRequestError
from tampu.sandbox import jsdoc
from tampu.sandbox.jsdoc import MAX_DESCRIBING_CHARS, describe_function

STRING, NUMBER = {"type": "string"}, {"type": "number"}


def properties(code: str) -> dict[str, Any]:
    found: dict[str, Any] = describe_function(code).parameters["properties"]
    return found


def required(code: str) -> list[str]:
    found: list[str] = describe_function(code).parameters.get("required", [])
    return found


def test_a_documented_function() -> None:
    tool = describe_function(
        """
        // Copyright somebody
        /**
         * Get the weather
         * of a city.
         *
         * @param {object} args - What to look up
         * @param {string} args.city - Name of the
         *   city
         * @param {number} [args.days=3] How many days
         * @param {"metric"|"imperial"} [args.units] - Units
         * @param {string[]} args.fields
         * @returns {Promise<object>} the weather
         */
        async function getWeather(args) { return args.city }
        """
    )
    assert tool.name == "getWeather"
    assert tool.description == "Get the weather of a city."
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city"},
            "days": {"type": "number", "default": 3, "description": "How many days"},
            "units": {"enum": ["metric", "imperial"], "description": "Units"},
            "fields": {"type": "array", "items": STRING},
        },
        "required": ["city", "fields"],
    }


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("function add({a}) {}", "add"),
        ("async function* gen({a}) {}", "gen"),
        ("const add = async ({a}) => a", "add"),
        ("let add = function ({a}) {}", "add"),
        ("export default function add({a}) {}", "add"),
        ("({a}) => a", ""),
        ("async({a}) => a", ""),
        ("(async function ({a}) {})", ""),
        ("((({a}) => a))", ""),
        ("/* c */ ( {a} ) => a", ""),
    ],
)
def test_names_and_heads(code: str, name: str) -> None:
    assert describe_function(code).name == name
    assert describe_function(code, "given").name == "given"
    assert properties(code) == {"a": {}}


@pytest.mark.parametrize(
    "code",
    [
        *("args => 1", "async args => 1", "function f(args) {}", "(x) => x", "(...all) => 1", "({...rest}) => 1"),
        *("1", "", "(() => ({city}) => city)()", "/** @param {object} o */ o => 1"),
    ],
)
def test_without_documentation_or_destructuring_any_object_goes(code: str) -> None:
    assert describe_function(code).parameters == {"type": "object"}


@pytest.mark.parametrize("code", ["() => 1", "function f() {}", "async () => 1", "( /* none */ ) => 1", "({ }) => 1"])
def test_a_function_without_parameters_takes_no_arguments(code: str) -> None:
    assert describe_function(code).parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    "code",
    [
        "const helper=(z)=>z;\n/** Gets weather.\n * @param {{city: string}} o */\n"
        "function f({city}){return helper(city)}",
        "/** Helps.\n * @param {number} z */\nfunction helper({z}) { return z }\n// the one\n/** Gets weather.\n"
        " * @param {string} args.city */\nconst f = async (args) => helper(args.city)",
        'const LIMIT = 5, s = "function f(";\n/** Gets weather.\n * @param {{city: string}} o */\nfunction only(o) {}',
        "const a = {f: 1};\n/** Helps. */\nlet help = x => x;\n/** Gets weather.\n * @param {{city: string}} o */\n"
        "var last = function (o) { function f({b}) {} }",
        "/** Gets weather.\n * @param {{city: string}} o */\nconst f = (o) => { const x = 1; function y(b) {} };",
        "const h = s => s.replace(/[(]/g, '');\n/** Gets weather.\n * @param {{city: string}} o */\nfunction f(o) {}",
        "/** Gets weather.\n * @param {{city: string}} o */\n(o) => { const f = 1; return f }",
    ],
)
def test_the_function_that_runs_is_described(code: str) -> None:
    tool = describe_function(code, "f")
    assert tool.description == "Gets weather."
    assert tool.parameters == {"type": "object", "properties": {"city": STRING}, "required": ["city"]}


@pytest.mark.parametrize("code", ["function a({x}) {}\nfunction b({y}) {}", "const n = 1;\n({x}) => x"])
def test_where_it_cannot_be_told_which_runs_any_object_goes(code: str) -> None:
    assert describe_function(code, "f") == ToolSpec("f", "", {"type": "object"})


def test_destructuring_with_defaults() -> None:
    code = """({ city, days = 3, ratio = 0.5, unit = 'C', deep: { x, y }, list = [], flag = true, "odd key": odd,
               alias: other = "a, } b", /* note */ computed = f({a: 1}), ...rest }, second) => city"""
    assert properties(code) == {
        "city": {},
        "days": {"type": "number", "default": 3},
        "ratio": {"type": "number", "default": 0.5},
        "unit": {"type": "string", "default": "C"},
        "deep": {"type": "object"},
        "list": {"type": "array", "default": []},
        "flag": {"type": "boolean", "default": True},
        "odd key": {},
        "alias": {"type": "string", "default": "a, } b"},
        "computed": {},
    }
    assert required(code) == ["city", "deep", "odd key"]


def test_documentation_and_destructuring_complete_each_other() -> None:
    code = "/** Adds. @nothing\n * @param {number} a first\n */ ({ a, b = 2 }) => a + b"
    assert properties(code) == {"a": {"type": "number", "description": "first"}, "b": {"type": "number", "default": 2}}
    assert required(code) == ["a"]
    code = "/** @param {number} b */ ({ b = 2 }) => b"
    assert properties(code) == {"b": {"type": "number", "default": 2}}
    assert required(code) == []


@pytest.mark.parametrize(
    "code",
    [
        "/** @param {{city: string, days?: number}} args */ (args) => 1",
        "/** @param {{ city: string; days?: number; }} options */ ({ city, days = undefined }) => 1",
        "/** @param {object} o\n * @param {string} o.city\n * @param {number=} o.days */ (o) => 1",
        "/** @arg {string} city\n * @argument {number} [days] */ ({ city, days }) => 1",
    ],
)
def test_four_ways_to_document_one_object(code: str) -> None:
    assert properties(code) == {"city": STRING, "days": NUMBER}
    assert required(code) == ["city"]


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        ("string", STRING),
        ("String", STRING),
        ("integer", {"type": "integer"}),
        ("boolean", {"type": "boolean"}),
        ("Array<number>", {"type": "array", "items": NUMBER}),
        ("Array.<string[]>", {"type": "array", "items": {"type": "array", "items": STRING}}),
        ("(string|number)[]", {"type": "array", "items": {"anyOf": [STRING, NUMBER]}}),
        ("string | null", {"anyOf": [STRING, {"type": "null"}]}),
        ("?string", {"type": ["string", "null"]}),
        ("!string", STRING),
        ("'a' | 'b' | 3", {"enum": ["a", "b", 3]}),
        ("string|undefined", STRING),
        ("Record<string, number>", {"type": "object"}),
        ("{x: {y: string}}", {
            "type": "object",
            "properties": {"x": {"type": "object", "properties": {"y": STRING}, "required": ["y"]}},
            "required": ["x"],
        }),
        ("*", {}),
        ("any", {}),
        ("SomeClass", {}),
        ("string|SomeClass", {}),
    ],
)  # fmt: skip
def test_types(kind: str, schema: dict[str, Any]) -> None:
    assert properties(f"/** @param {{{kind}}} p */ ({{p}}) => p") == {"p": schema}


@pytest.mark.parametrize(
    "code",
    [
        "",
        "/**",
        "/** @param",
        "/** @param {string */ x",
        "({",
        "({ a = '",
        "function (",
        "({ a = `${",
        "/** @param {" + "{a: " * 5000 + "} x */",
        "({ a: " * 20_000,
        "(" * 100_000,
        "/*" * 50_000,
        "/** */" * 20_000,
        "//" + "\n//" * 50_000,
        "/** @param {" + "(" * 20_000 + "} x */",
        "/** @param {" + "(" * 20_000 + "a" + ")" * 20_000 + "} x */",
        "/** @param {{a" + " " * 60_000 + "!}} x */",
        "/** @param {string" + "[]" * 20_000 + "} x */",
        "/** @param {" + "a|" * 20_000 + "} x */",
        "({ " + "a=1," * 15_000,
        " " * 60_000 + "x",
        "/** @param {string} " + " " * 60_000 + "*/",
    ],
)
def test_hostile_sources_are_read_or_refused(code: str) -> None:
    try:
        schema = describe_function(code).parameters
    except InvalidRequestError:
        return
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("/** @param {" + "{a:" * 20_000 + "} o */ (o) => 1", "JSDoc comment"),
        ("/** @param {{" + ",".join(f"a{i}: string" for i in range(4000)) + "}} o */ (o) => 1", "JSDoc comment"),
        ("({" + "a=1," * 15_000 + "}) => 1", "first parameter"),
    ],
)
def test_what_describes_a_function_is_bounded(code: str, what: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^the function's {what} is longer than 8000 characters$") as caught:
        describe_function(code)
    assert caught.value.field == "code"


def test_a_deep_type_is_not_read_again_for_each_level(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = jsdoc._until

    def counted(text: str, begin: int, ends: str) -> str:
        part = plain(text, begin, ends)
        read.append(len(part))
        return part

    monkeypatch.setattr(jsdoc, "_until", counted)
    describe_function("/** @param {" + "{a:" * 2600 + "} o */ (o) => 1")
    assert sum(read) < 30 * MAX_DESCRIBING_CHARS


def test_random_pieces_always_give_a_valid_schema() -> None:
    rng = random.Random(5)
    pieces = [
        "/**",
        "*/",
        "@param ",
        "{string}",
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        " a",
        ".b",
        "=",
        "=>",
        "'",
        '"',
        "`",
        "|",
    ]
    pieces += [
        "\n * ",
        "async ",
        "function ",
        "const ",
        "...",
        ",",
        ":",
        "\\",
        "//",
        "/*",
        "1",
        "$",
        "?",
        "<",
        ">",
        "-",
    ]
    for _ in range(400):
        code = "".join(rng.choices(pieces, k=rng.randint(1, 40)))
        jsonschema.Draft202012Validator.check_schema(describe_function(code).parameters)
