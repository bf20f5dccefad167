"""JSON schemas made safe to build a grammar from: checked, bounded, and written anew in one small dialect.

Every keyword that changes what is valid is either carried over in a form `llguidance` enforces, or refused by name and
path. Nothing is loosened; some things are narrowed (docs/json-schema.md lists them). Knows no grammar and no tokens.
Drafts 4 to 2020-12 are read alike where they agree; where `items` is a list it is the older drafts' tuple.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from tampu.text.patterns import PatternError, anchored_pattern
from tampu.text.schema_costs import SchemaCosts, SchemaLimits, refuse
from tampu.text.string_formats import FORMAT_PATTERNS, FORMATS, UNENFORCED_FORMATS

Schema = dict[str, Any] | bool

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# Keywords that change what is valid and that no grammar of ours enforces. Those without effect in their place pass.
REFUSED = frozenset(
    {"contains", "dependentSchemas", "dependentRequired", "dependencies", "$dynamicRef", "$recursiveRef"}
    | {"disallow", "extends", "divisibleBy"},
)
_NOTHING_WHEN_EMPTY = frozenset({"dependentSchemas", "dependentRequired", "dependencies", "extends"})
_HOLDS_SCHEMAS = frozenset(
    {"properties", "patternProperties", "additionalProperties", "items", "prefixItems", "additionalItems"}
    | {"allOf", "anyOf", "oneOf"}
)
_IN_PLACE = ("allOf", "anyOf", "oneOf", "$ref")
_INTEGER_LIMIT = 2**53 - 1  # beyond it, readers in JavaScript lose digits
_NUMBER_LIMIT = 1e15
_MAX_COUNT = 2**31 - 1
# The library reads JSON of at most 128 levels, and a schema takes up to two of them: so much depth stays in one piece.
_DEPTH_IN_ONE_PIECE = 20


class NormalizedSchemas:
    """Collects schemas of one grammar, with their definitions under common names."""

    def __init__(self, limits: SchemaLimits | None = None) -> None:
        self.definitions: dict[str, Schema] = {}
        self.paths: list[tuple[str, Schema]] = []  # where each schema stood, inner ones first
        self.costs = SchemaCosts(limits or SchemaLimits())

    def add(self, schema: Any, *, path: str = "") -> Schema:
        """The schema in our dialect; what it refers to is put into `definitions`.

        `path` is where the schema stands in the request, for errors. Raises UnsupportedSchemaError.
        """
        try:
            num_bytes = len(json.dumps(schema, allow_nan=False))
        except RecursionError:
            refuse("", path, "the schema is nested too deeply")
        except (TypeError, ValueError) as error:
            refuse("", path, f"the schema is not JSON: {error}")
        self.costs.count_bytes(num_bytes, path)
        reader = _Reader(self, schema, path)
        root = reader.node(schema, path)
        reader.read_references()
        self._refuse_loops(path)
        return root

    def _refuse_loops(self, path: str) -> None:
        """Refuse references that come back to themselves without entering a value."""
        done: set[str] = set()
        for start in self.definitions:
            trail: list[tuple[str, list[str]]] = [(start, _in_place_references(self.definitions[start]))]
            on_trail = {start}
            while trail and start not in done:
                name, following = trail[-1]
                if not following:
                    done.add(name)
                    on_trail.discard(name)
                    trail.pop()
                elif (follower := following.pop()) in on_trail:
                    refuse("$ref", path, "a reference leads back to itself")
                elif follower not in done:
                    on_trail.add(follower)
                    trail.append((follower, _in_place_references(self.definitions[follower])))


def _in_place_references(schema: Schema) -> list[str]:
    """Definitions that the schema applies to the same value."""
    found: list[str] = []
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if "$ref" in node:
                found.append(node["$ref"].removeprefix("#/$defs/"))
            for keyword in ("allOf", "anyOf", "oneOf"):
                pending += node.get(keyword, ())
    return found


class _Reader:
    """Translates one schema document."""

    def __init__(self, owner: NormalizedSchemas, document: Any, path: str) -> None:
        self._owner = owner
        self._costs = owner.costs
        self._document = document
        self._path = path
        self._depth = 0
        self._piece_depth = 0  # where what is in one piece begins
        self._has_inner_id = False
        self._names: dict[str, str] = {}  # JSON pointer -> name in the owner's definitions
        self._unread: list[tuple[str, str, str]] = []  # pointer, name, where it was referred to

    def read_references(self) -> None:
        """Translate what was referred to, until nothing new is."""
        while self._unread:
            pointer, name, path = self._unread.pop()
            self._owner.definitions[name] = self.node(self._resolve(pointer, path), f"{self._path}{pointer}")

    def node(self, schema: Any, path: str, *, is_branch: bool = False) -> Schema:
        """One schema in our dialect; from some depth on, a reference to it, but not in place of a branch."""
        self._costs.count("", path, nodes=1)
        piece_depth = self._piece_depth
        # Leaves stay where they are: the library tells branches apart by a const that it sees.
        is_piece = (
            not is_branch
            and self._depth - piece_depth >= _DEPTH_IN_ONE_PIECE
            and isinstance(schema, dict)
            and not _HOLDS_SCHEMAS.isdisjoint(schema)
        )
        if is_piece:
            self._piece_depth = self._depth
        self._depth += 1
        if self._depth > self._costs.limits.max_depth:
            refuse("", path, f"schemas are nested more than {self._costs.limits.max_depth} deep")
        if not isinstance(schema, dict | bool):
            refuse("", path, "a schema is an object, true or false")
        result = schema if isinstance(schema, bool) else self._object_node(schema, path)
        self._depth -= 1
        self._piece_depth = piece_depth
        self._owner.paths.append((path, result))
        if not is_piece or isinstance(result, bool):
            return result
        name = f"d{len(self._owner.definitions)}"
        self._owner.definitions[name] = result
        return {"$ref": f"#/$defs/{name}"}

    def _object_node(self, schema: dict[str, Any], path: str) -> Schema:
        out: dict[str, Any] = {}
        for keyword, value in schema.items():
            if (keyword in REFUSED and (value != {} or keyword not in _NOTHING_WHEN_EMPTY)) or (
                keyword == "if" and not {"then", "else"}.isdisjoint(schema)
            ):
                refuse(keyword, path, "cannot be enforced by a grammar; remove it")
            handler = _HANDLERS.get(keyword)
            if handler is not None:
                handler(self, schema, keyword, value, path, out)
        if out.pop("impossible", False):
            return False
        _bound_integers(out)
        return out

    def _resolve(self, pointer: str, path: str) -> Any:
        value = self._document
        for part in pointer.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdecimal() and key.isascii() and int(key) < len(value):
                value = value[int(key)]
            else:
                refuse("$ref", path, f"#{pointer} is not in the schema")
        return value

    # --- handlers, one for each keyword or group of keywords ------------------------------------------------------

    def reference(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """$ref."""
        if not isinstance(value, str) or not value.startswith("#") or (len(value) > 1 and value[1] != "/"):
            refuse(
                keyword, path, f"{value!r} is not a JSON pointer into this schema; references elsewhere are not read"
            )
        if self._has_inner_id:
            refuse("$id", path, "an inner $id changes what references mean; remove it")
        pointer = value[1:]
        name = self._names.get(pointer)
        if name is None:
            name = self._names[pointer] = f"d{len(self._owner.definitions)}"
            self._owner.definitions[name] = True  # until it is read
            self._unread.append((pointer, name, path))
        out["$ref"] = f"#/$defs/{name}"

    def identifier(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """$id."""
        if schema is not self._document and isinstance(value, str) and not value.startswith("#"):
            self._has_inner_id = True
            if self._names:
                refuse(keyword, path, "an inner $id changes what references mean; remove it")

    def types(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """type."""
        names = value if isinstance(value, list) else [value]
        for name in names:
            if name not in TYPES:
                refuse(keyword, path, f"{name!r} is not one of {', '.join(TYPES)}")
        if not names:
            refuse(keyword, path, "an empty list allows nothing")
        if isinstance(value, list):
            names = list(dict.fromkeys(names))
            if "number" in names and "integer" in names:
                names.remove("integer")
        out["type"] = names[0] if len(names) == 1 else names

    def values(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """enum and const."""
        if keyword == "enum" and not (isinstance(value, list) and value):
            refuse(keyword, path, "must be a list that is not empty")
        allowed = value if keyword == "enum" else [value]
        self._costs.count(keyword, path, enum_values=len(allowed))
        for item in allowed:
            self._costs.check_value(item, keyword, path)
        out[keyword] = value

    def count(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """minLength, maxLength, minItems, maxItems and the like."""
        out[keyword] = _count(value, keyword, path)

    def num_properties(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """minProperties, maxProperties. A grammar cannot count distinct names, so duplicates must not matter."""
        number = _count(value, keyword, path)
        required = schema.get("required")
        if keyword == "minProperties" and isinstance(required, list) and len(set(map(str, required))) >= number:
            return
        if keyword == "minProperties" and number > 1:
            refuse(keyword, path, "more than the required properties cannot be counted; list them in 'required'")
        out[keyword] = number

    def bound(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """minimum, maximum, exclusiveMinimum, exclusiveMaximum."""
        if isinstance(value, bool) and keyword.startswith("exclusive"):
            refuse(keyword, path, "must be a number (drafts before 6, where it is a boolean, are not read)")
        number = _number(value, keyword, path)
        if abs(number) > (_INTEGER_LIMIT if "integer" in _types(schema) else _NUMBER_LIMIT):
            refuse(keyword, path, f"{value} is beyond what can be enforced")
        if isinstance(number, float) and ((number != 0 and abs(number) < 1e-9) or len(repr(number)) > 18):
            refuse(keyword, path, f"{value} has more digits than can be enforced")
        out[keyword] = number

    def multiple(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """multipleOf."""
        number = _number(value, keyword, path)
        if not 1e-9 <= number <= 1e9:
            refuse(keyword, path, f"{value} is not between 1e-9 and 1e9")
        out[keyword] = number

    def pattern(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """pattern."""
        self._add_pattern(self._translated(value, keyword, path), out)

    def _add_pattern(self, pattern: str, out: dict[str, Any]) -> None:
        if "pattern" in out:
            out.setdefault("allOf", []).append({"pattern": pattern})
        else:
            out["pattern"] = pattern

    def _translated(self, pattern: Any, keyword: str, path: str) -> str:
        if not isinstance(pattern, str):
            refuse(keyword, path, "must be a string")
        self._costs.count(keyword, path, pattern_chars=len(pattern))
        try:
            return anchored_pattern(pattern)
        except PatternError as error:
            refuse(keyword, path, f"{pattern[:80]!r}: {error}")

    def string_format(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """format."""
        if value in UNENFORCED_FORMATS if isinstance(value, str) else True:
            refuse(keyword, path, f"{value!r} cannot be enforced")
        if value in FORMAT_PATTERNS:
            self._add_pattern(FORMAT_PATTERNS[value], out)
        elif value in FORMATS:
            out[keyword] = value

    def subschema(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """additionalProperties."""
        out[keyword] = self.node(value, f"{path}/{keyword}")

    def properties(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """properties and patternProperties."""
        if not isinstance(value, dict):
            refuse(keyword, path, "must be an object")
        limits = self._costs.limits
        most = limits.max_properties if keyword == "properties" else limits.max_pattern_properties
        if len(value) > most:
            refuse(keyword, path, f"there are more than {most}")
        translated: dict[str, Schema] = {}
        for name, inner in value.items():
            key = name
            if keyword == "patternProperties":
                key = self._translated(name, keyword, path)
            self._costs.check_value(name, keyword, path)
            translated[key] = self.node(inner, f"{path}/{keyword}/{_pointer_part(name)}")
        out[keyword] = translated

    def required(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """required."""
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            refuse(keyword, path, "must be a list of names")
        for name in value:
            self._costs.check_value(name, keyword, path)
        out[keyword] = list(dict.fromkeys(value))

    def items(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """items, as a schema or as the older drafts' list; prefixItems."""
        if not isinstance(value, list):
            out[keyword] = self.node(value, f"{path}/{keyword}")
            return
        out["prefixItems"] = [self.node(inner, f"{path}/{keyword}/{i}") for i, inner in enumerate(value)]
        if keyword == "items" and "additionalItems" in schema:
            out["items"] = self.node(schema["additionalItems"], f"{path}/additionalItems")

    def branches(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """allOf, anyOf, oneOf."""
        if not isinstance(value, list) or not value:
            refuse(keyword, path, "must be a list that is not empty")
        read = [self.node(inner, f"{path}/{keyword}/{i}", is_branch=True) for i, inner in enumerate(value)]
        out[keyword] = out.get(keyword, []) + read  # a second pattern may have put one there

    def negation(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """not: only where it says nothing or everything."""
        if value in (True, {}):
            out["impossible"] = True
        elif value is not False:
            refuse(keyword, path, "cannot be enforced by a grammar; remove it")

    def unevaluated(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """unevaluatedProperties, unevaluatedItems: without branches they mean the same as their plain counterparts."""
        plain = "additionalProperties" if keyword == "unevaluatedProperties" else "items"
        is_tuple = plain == "items" and isinstance(schema.get("items"), list)
        if value in (True, {}) or ("additionalItems" if is_tuple else plain) in schema:
            return
        if any(name in schema for name in (*_IN_PLACE, "not")):
            refuse(keyword, path, f"cannot be enforced beside branches and references; use {plain!r} in each of them")
        out[plain] = self.node(value, f"{path}/{keyword}")

    def unique(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """uniqueItems."""
        most = schema.get("maxItems")
        if value is not False and not (isinstance(most, int) and most <= 1):
            refuse(keyword, path, "cannot be enforced by a grammar; remove it")

    def property_names(self, schema: Any, keyword: str, value: Any, path: str, out: dict[str, Any]) -> None:
        """propertyNames: only where it says nothing."""
        if value not in (True, {}, {"type": "string"}):
            refuse(keyword, path, "cannot be enforced by a grammar; use 'patternProperties'")


_Handler = Callable[[_Reader, Any, str, Any, str, dict[str, Any]], None]
_HANDLERS: dict[str, _Handler] = {
    "$ref": _Reader.reference,
    "$id": _Reader.identifier,
    "id": _Reader.identifier,
    "type": _Reader.types,
    "enum": _Reader.values,
    "const": _Reader.values,
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _Reader.count),
    **dict.fromkeys(("minProperties", "maxProperties"), _Reader.num_properties),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _Reader.bound),
    "multipleOf": _Reader.multiple,
    "pattern": _Reader.pattern,
    "format": _Reader.string_format,
    "additionalProperties": _Reader.subschema,
    **dict.fromkeys(("properties", "patternProperties"), _Reader.properties),
    "required": _Reader.required,
    **dict.fromkeys(("items", "prefixItems"), _Reader.items),
    **dict.fromkeys(("allOf", "anyOf", "oneOf"), _Reader.branches),
    "not": _Reader.negation,
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems"), _Reader.unevaluated),
    "uniqueItems": _Reader.unique,
    "propertyNames": _Reader.property_names,
}


def _types(schema: Any) -> list[str]:
    declared = schema.get("type", [])
    return declared if isinstance(declared, list) else [declared]


def _bound_integers(out: dict[str, Any]) -> None:
    """Keep integers within what every JSON reader holds exactly, unless the schema's own bounds are narrower."""
    if "integer" not in _types(out):
        return
    if "minimum" not in out and "exclusiveMinimum" not in out:
        out["minimum"] = -_INTEGER_LIMIT
    if "maximum" not in out and "exclusiveMaximum" not in out:
        out["maximum"] = _INTEGER_LIMIT


def _pointer_part(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _count(value: Any, keyword: str, path: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_COUNT:
        refuse(keyword, path, f"{value!r} is not a whole number between 0 and {_MAX_COUNT}")
    return value


def _number(value: Any, keyword: str, path: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        refuse(keyword, path, f"{value!r} is not a number")
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= _INTEGER_LIMIT else value
