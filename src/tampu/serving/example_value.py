"""The smallest value that fits an ordinary JSON schema, for the mock's answers. Not a validator, not complete."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any

_MAX_DEPTH = 16
_LARGEST = 1e300
_BOUNDS = {
    "minimum": operator.ge,
    "maximum": operator.le,
    "exclusiveMinimum": operator.gt,
    "exclusiveMaximum": operator.lt,
}
_BY_FORMAT = {
    "date": "2025-01-01",
    "date-time": "2025-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def example_value(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """A value for `schema`, always the same one. Local `$ref`s are followed; unknown keywords are ignored."""
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return {} if depth == 0 else None
    root = schema if root is None else root
    if isinstance(schema.get("$ref"), str):
        return example_value(_resolved(schema["$ref"], root), root, depth + 1)
    for keyword in ("const", "default"):
        if keyword in schema:
            return schema[keyword]
    for keyword in ("enum", "examples"):
        if isinstance(schema.get(keyword), list) and schema[keyword]:
            return schema[keyword][0]
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list) and schema[keyword]:
            return example_value(schema[keyword][0], root, depth + 1)
    if isinstance(schema.get("allOf"), list):
        merged = {key: value for part in schema["allOf"] if isinstance(part, dict) for key, value in part.items()}
        return example_value(
            {**merged, **{key: value for key, value in schema.items() if key != "allOf"}}, root, depth + 1
        )
    return _of_type(schema, root, depth)


def _of_type(schema: dict[str, Any], root: Any, depth: int) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind is None:
        kind = "object" if "properties" in schema or depth == 0 else "string"
    match kind:
        case "object":
            return _object(schema, root, depth)
        case "array":
            items = schema.get("items", {})
            return [example_value(items, root, depth + 1) for _ in range(_count(schema.get("minItems")))]
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return True
        case "null":
            return None
    if isinstance(schema.get("format"), str) and schema["format"] in _BY_FORMAT:
        return _BY_FORMAT[schema["format"]]
    longest = schema.get("maxLength")
    text = "text".ljust(_count(schema.get("minLength")), "-")
    return text[:longest] if isinstance(longest, int) and longest >= 0 else text


def _object(schema: dict[str, Any], root: Any, depth: int) -> dict[str, Any]:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    required = schema.get("required")
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else list(properties)
    return {name: example_value(properties.get(name, {"type": "string"}), root, depth + 1) for name in names}


def _number(schema: dict[str, Any]) -> Any:
    """The first of some likely numbers that meets the keywords; 1 when none does."""
    bounds = {keyword: schema[keyword] for keyword in _BOUNDS if _is_finite(schema.get(keyword))}
    step = schema.get("multipleOf") if _is_finite(schema.get("multipleOf")) and schema["multipleOf"] > 0 else None
    values = [*bounds.values(), 0]
    likely = [1, 0, *(value + shift for value in values for shift in (0, 1, -1)), (min(values) + max(values)) / 2]
    if step is not None:
        likely += [
            float(multiple) if multiple.denominator > 1 else int(multiple)
            for value in values
            for multiple in (Fraction(step) * (Fraction(value) // Fraction(step) + i) for i in range(-2, 9))
            if abs(multiple) < _LARGEST
        ]
    if schema.get("type") != "number":
        likely = [int(value) for value in likely if value == int(value)]
    for value in likely:
        is_inside = all(_BOUNDS[keyword](value, bound) for keyword, bound in bounds.items())
        if is_inside and (step is None or (Fraction(value) / Fraction(step)).denominator == 1):
            return value
    return 1


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _count(value: Any) -> int:
    return min(value, 1000) if isinstance(value, int) and value > 0 else 0


def _resolved(reference: str, root: Any) -> Any:
    node = root
    for part in reference.removeprefix("#").split("/")[1:]:
        node = node.get(part) if isinstance(node, dict) else None
    return node
