"""A validator with the semantics of the hosted service's own, so that refusals read the same, letter for letter.

This is not standard JSON Schema: see the numbered rules in `validate`. It knows the keywords that the run endpoint's
schema uses and no HTTP. Values are compared as JavaScript sees them: `5.0` is an integer, lengths count UTF-16 units,
object keys that look like array indices come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = Mapping[str, Any]
Path = tuple[str, ...]

_MAX_ERRORS = 64  # a request with 100,000 bad tools must not produce a reply of megabytes


class SchemaMismatchError(Exception):
    """The payload does not meet the schema; `str(error)` is the hosted service's wording."""


class _Undefined:
    """JavaScript's undefined: the value is not there."""


_UNDEFINED = _Undefined()


@dataclass(slots=True)
class _Context:
    """What the parts of one validation share: problems met so far (in order, once each) and pending defaults."""

    errors: dict[str, None] = field(default_factory=dict)
    defaults: list[tuple[dict[str, Any], str, Any]] = field(default_factory=list)

    def note(self, message: str) -> None:
        if len(self.errors) < _MAX_ERRORS:
            self.errors[message] = None


def validate(schema: Schema, payload: Any) -> int:
    """Check `payload` against a top-level `oneOf`, write the defaults of the matching branch into it, return its index.

    1. A top-level `oneOf` passes with exactly one matching branch; otherwise every branch's first problem is listed.
    2. A branch checks its properties in the schema's order and stops at the first problem; `required` comes last.
    3. A property is present when its own check matched something; null, numbers and booleans are empty arrays.
    4. A nested `oneOf` that does not match is no error, only an absent property.
    5. An array whose items are all strings and numbers is "binary" and is not looked into.

    Raises:
        SchemaMismatchError: with the hosted service's message.
    """
    context = _Context()
    matches, index = _match_one_of(schema, payload, (), context)
    if matches != 1:
        message = f"oneOf at '/' not met, {matches} matches"
        if context.errors:
            message += ": " + ", ".join(context.errors)
        raise SchemaMismatchError(message)
    for target, key, value in context.defaults:
        target[key] = value
    return index


def _match_one_of(schema: Schema, value: Any, path: Path, context: _Context) -> tuple[int, int]:
    """How many alternatives match, and the last that did; stops as soon as it cannot be exactly one."""
    matches, matching_index = 0, -1
    kept: list[tuple[dict[str, Any], str, Any]] = []
    for index, alternative in enumerate(schema["oneOf"]):
        branch = _Context(errors=context.errors)
        merged = alternative if "type" in alternative else {"type": schema.get("type"), **alternative}
        try:
            num_matches = _match(merged, value, path, branch)
        except SchemaMismatchError as error:
            context.note(str(error))
            continue
        matches += num_matches
        if num_matches:
            matching_index = index
        if matches != 1:
            break
        kept.extend(branch.defaults)
    if matches == 1:
        context.defaults.extend(kept)
    return matches, matching_index


def _match(schema: Schema, value: Any, path: Path, context: _Context) -> int:
    """Number of matches (0 = absent). Raises SchemaMismatchError at the first problem."""
    if "oneOf" in schema:
        return int(_match_one_of(schema, value, path, context)[0] == 1)
    wanted = schema.get("type")
    if wanted == "array" and not isinstance(value, str) and not _is_binary(value):
        return sum(_match(schema["items"], item, (*path, key), context) for key, item in _entries(value))
    if wanted == "object" or "properties" in schema:
        return int(_match_object(schema, value, path, context))
    if isinstance(value, _Undefined):
        return 0
    _check_scalar(schema, value, path)
    return 1


def _match_object(schema: Schema, value: Any, path: Path, context: _Context) -> bool:
    present = set()
    for name, subschema in schema.get("properties", {}).items():
        member = _member(value, name)
        if _match(subschema, member, (*path, name), context) > 0:
            present.add(name)
        elif isinstance(member, _Undefined) and "default" in subschema and isinstance(value, dict):
            context.defaults.append((value, name, subschema["default"]))
    num_matches = len(present)
    if "additionalProperties" in schema and isinstance(value, dict):
        num_matches += _match_additional(schema["additionalProperties"], value, present)
    required = schema.get("required", ())
    if not present.issuperset(required):
        raise SchemaMismatchError(f"required properties at '{_spell(path)}' are '{','.join(required)}'")
    return num_matches > 0


def _match_additional(schema: Schema, value: dict[str, Any], present: set[str]) -> int:
    """Members that `properties` did not name. The original looks a key with slashes up by its last part; so do we."""
    num_matches = 0
    for key, _ in _entries(value):
        if key not in present:
            name = key.rsplit("/", 1)[-1]
            num_matches += int(_match(schema, _member(value, name), (name,), _Context()) > 0)
    return num_matches


def _check_scalar(schema: Schema, value: Any, path: Path) -> None:
    wanted = schema.get("type")
    types = _types(value)
    if wanted is not None and wanted not in types:
        listed = ",".join(f"'{name}'" for name in types)
        raise SchemaMismatchError(f"Type mismatch of '{_spell(path)}', '{wanted}' not in {listed}")
    if wanted == "string" and isinstance(value, str):
        _check_length(schema, value, path)
    elif wanted in ("number", "integer"):
        if "minimum" in schema and value < schema["minimum"]:
            raise SchemaMismatchError(f"'{_spell(path)}' must be >= {schema['minimum']}")
        if "maximum" in schema and value > schema["maximum"]:
            raise SchemaMismatchError(f"'{_spell(path)}' must be <= {schema['maximum']}")


def _check_length(schema: Schema, value: str, path: Path) -> None:
    longest = schema.get("maxLength")
    if longest is not None and 2 * len(value) > longest and num_utf16_units(value) > longest:
        raise SchemaMismatchError(f"Length of '{_spell(path)}' must be <= {longest}")
    shortest = schema.get("minLength")
    if shortest is not None and num_utf16_units(value) < shortest:
        raise SchemaMismatchError(f"Length of '{_spell(path)}' must be >= {shortest} not met")


def num_utf16_units(text: str) -> int:
    """Length of `text` as JavaScript counts it."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _types(value: Any) -> tuple[str, ...]:
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, str):
        return ("string",)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return ("number", "integer")
    if isinstance(value, float):
        return ("number",)
    if isinstance(value, list):
        return ("array", "binary") if _is_binary(value) else ("array",)
    return ("object",)


def _is_binary(value: Any) -> bool:
    """Only strings and numbers, up to the first null: the original asks for the first other item and gets null."""
    if not isinstance(value, list):
        return False
    for item in value:
        if item is None:
            return True
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            return False
    return True


def _member(value: Any, name: str) -> Any:
    return value.get(name, _UNDEFINED) if isinstance(value, dict) else _UNDEFINED


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """What JavaScript's `for in` visits; nothing for null, numbers and booleans."""
    if isinstance(value, list):
        yield from ((str(index), item) for index, item in enumerate(value))
    elif isinstance(value, dict):
        indices = sorted((key for key in value if _is_index(key)), key=int)
        yield from ((key, value[key]) for key in indices)
        yield from ((key, item) for key, item in value.items() if not _is_index(key))


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdigit() and (key == "0" or key[0] != "0") and len(key) <= 10 and int(key) < 2**32 - 1


def _spell(path: Path) -> str:
    return "".join(f"/{part}" for part in path) or "/"
