"""Two rewrites of normalized schemas, so that a grammar made of them always comes to an end. Knows no grammar.

`without_endless` takes out what no finite value satisfies; `closed` takes away properties nobody asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tampu.text.json_schema import Schema

_MAX_PASSES = 64
_BRANCHES = ("allOf", "anyOf", "oneOf")
_SCALARS = frozenset({"null", "boolean", "integer", "number", "string"})


def without_endless(root: Schema, definitions: Mapping[str, Schema]) -> tuple[Schema, dict[str, Schema]]:
    """The same schemas with `false` wherever only an endless value would do (a tree without leaves)."""
    finite: set[str] = set()
    names = list(definitions)
    for turn in range(_MAX_PASSES):
        found = [
            n for n in (names if turn % 2 else reversed(names)) if n not in finite and _grows(n, definitions, finite)
        ]
        if not found:
            break

    def pruned(node: Schema) -> Schema:
        return _mapped(node, pruned) if _is_finite(node, finite) else False

    return pruned(root), {name: pruned(node) for name, node in definitions.items()}


def _grows(name: str, definitions: Mapping[str, Schema], finite: set[str]) -> bool:
    if not _is_finite(definitions[name], finite):
        return False
    finite.add(name)
    return True


def _is_finite(node: Schema, finite: set[str]) -> bool:
    """True when some finite value satisfies the node, given the definitions known to have one."""
    if isinstance(node, bool):
        return node
    if "$ref" in node and node["$ref"].removeprefix("#/$defs/") not in finite:
        return False
    if not all(_is_finite(branch, finite) for branch in node.get("allOf", ())):
        return False
    for keyword in ("anyOf", "oneOf"):
        if keyword in node and not any(_is_finite(branch, finite) for branch in node[keyword]):
            return False
    if "enum" in node or "const" in node:
        return True
    declared = node.get("type", [])
    types = set(declared if isinstance(declared, list) else [declared])
    if not types or types & _SCALARS:
        return True
    return ("array" in types and _has_finite_array(node, finite)) or (
        "object" in types and _has_finite_object(node, finite)
    )


def _has_finite_array(node: dict[str, Any], finite: set[str]) -> bool:
    least = node.get("minItems", 0)
    first = node.get("prefixItems", [])
    if not all(_is_finite(item, finite) for item in first[:least]):
        return False
    return bool(least <= len(first)) or _is_finite(node.get("items", True), finite)


def _has_finite_object(node: dict[str, Any], finite: set[str]) -> bool:
    properties = node.get("properties", {})
    other = node.get("additionalProperties", True)
    return all(_is_finite(properties.get(name, other), finite) for name in node.get("required", ()))


def closed(
    root: Schema, definitions: Mapping[str, Schema], *, counted_only: bool = False
) -> tuple[Schema, dict[str, Schema]] | None:
    """The same schemas without unlisted properties, or None where that could change more than it should.

    An object that lists its properties and is silent about others gets no others. Only valid values remain, so this
    narrows; it is left alone where schemas are put together of parts (`allOf`, references with siblings), since the
    parts would shut each other out. `oneOf` becomes `anyOf`: the caller has made sure its branches exclude each other,
    and narrowed branches still do. With `counted_only`, it closes just the objects that have `minProperties`, and needs
    no such caller: it leaves schemas with `oneOf` alone.
    """
    everything = [root, *definitions.values()]
    if counted_only and any("oneOf" in node for node in _all_nodes(everything)):
        return None
    if any("allOf" in node or ("$ref" in node and len(node) > 1) for node in _all_nodes(everything)):
        return None

    def shut(node: Schema, may_shut: bool = True) -> Schema:
        if isinstance(node, bool):
            return node
        has_branches = any(keyword in node for keyword in _BRANCHES)
        is_mixed = has_branches and len(node) > 1
        out: dict[str, Any] = {}
        for keyword, value in node.items():
            if keyword in _BRANCHES:
                out["anyOf" if keyword == "oneOf" and "anyOf" not in node else keyword] = [
                    shut(branch, may_shut and not is_mixed) for branch in value
                ]
            else:
                out[keyword] = _mapped_value(keyword, value, shut)
        is_meant = ("minProperties" in node) is counted_only  # what is counted may need the members it does not list
        if is_meant and may_shut and not has_branches and _lists_all(node):
            out["additionalProperties"] = False
        return out

    return shut(root), {name: shut(node) for name, node in definitions.items()}


def _lists_all(node: dict[str, Any]) -> bool:
    properties = node.get("properties")
    return bool(
        properties
        and "additionalProperties" not in node
        and "patternProperties" not in node
        and set(node.get("required", ())) <= set(properties)
    )


def _all_nodes(roots: list[Schema]) -> Iterator[dict[str, Any]]:
    pending = list(roots)
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            yield node
            for keyword, value in node.items():
                _mapped_value(keyword, value, lambda inner: pending.append(inner) or inner)  # type: ignore[func-returns-value]


def _mapped(node: Schema, change: Callable[[Schema], Schema]) -> Schema:
    if isinstance(node, bool):
        return node
    return {keyword: _mapped_value(keyword, value, change) for keyword, value in node.items()}


def _mapped_value(keyword: str, value: Any, change: Callable[[Schema], Schema]) -> Any:
    """A keyword's value with the schemas in it changed."""
    if keyword in ("additionalProperties", "items"):
        return change(value)
    if keyword in ("prefixItems", *_BRANCHES):
        return [change(inner) for inner in value]
    if keyword in ("properties", "patternProperties"):
        return {name: change(inner) for name, inner in value.items()}
    return value
