"""Reads a request body by a table of parameters: what is checked, refused by name or passed over, and how it is told.

A parameter is honoured, accepted (it changes nothing here, and nobody is misled by that) or refused. Knows no
parameter; the tables are in `openai_parameters`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from tampu.core.errors import InvalidRequestError

IGNORED_HEADER = "x-tampu-ignored"  # names the body members that no version of the protocol knows

_TYPE_NAMES = {
    "string": "a string",
    "number": "a number",
    "integer": "an integer",
    "boolean": "true or false",
    "array": "an array",
    "object": "an object",
}
_MAX_SHOWN_CHARS = 60
_MAX_UNKNOWN = 32  # each one is compared with every known name


class Treatment(StrEnum):
    """What happens with a parameter."""

    HONOURED = "honoured"
    ACCEPTED = "accepted"  # without effect, and none is needed
    REFUSED = "refused"  # 400 naming it, unless the value is one of `harmless`


@dataclass(frozen=True, slots=True)
class Parameter:
    """One member of a request body. `schema` is JSON Schema; null always means that the member is absent."""

    name: str
    schema: Mapping[str, Any]
    note: str = ""
    treatment: Treatment = Treatment.HONOURED
    harmless: tuple[Any, ...] = ()  # values of a refused parameter that ask for nothing


def accepted(name: str, schema: Mapping[str, Any], note: str) -> Parameter:
    """A parameter without effect."""
    return Parameter(name, schema, note, Treatment.ACCEPTED)


def refused(name: str, note: str, *harmless: Any) -> Parameter:
    """A parameter we cannot honour; `note` completes the sentence "'name' is not supported: ..."."""
    return Parameter(name, {}, note, Treatment.REFUSED, harmless)


def read_parameters(parameters: Iterable[Parameter], body: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The checked members of a body without nulls, and the names of unknown members.

    Raises:
        InvalidRequestError: for a wrong value, for a refused parameter, and for a name that is nearly a known one.
    """
    if not isinstance(body, dict):
        raise InvalidRequestError("", "the body must be a JSON object", hint="Send one JSON object.")
    known = {parameter.name: parameter for parameter in parameters}
    values: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in body.items():
        if value is None:
            continue
        parameter = known.get(name)
        if parameter is None:
            unknown.append(name)
            if len(unknown) > _MAX_UNKNOWN:
                raise InvalidRequestError(name[:100], f"the body has more than {_MAX_UNKNOWN} unknown members")
            _refuse_misspelling(name, known)
        elif parameter.treatment is Treatment.REFUSED:
            if not any(value == harmless and type(value) is type(harmless) for harmless in parameter.harmless):
                raise _refusal(parameter, value)
        else:
            values[name] = _checked(value, parameter.schema, name)
    return values, tuple(unknown)


def required(values: Mapping[str, Any], name: str) -> Any:
    """A member that must be there. Raises InvalidRequestError."""
    if name not in values:
        hint = "GET /v1/models lists the names." if name == "model" else f"Send '{name}'."
        raise InvalidRequestError(name, f"'{name}' is missing", hint=hint)
    return values[name]


def request_schema(parameters: Iterable[Parameter], required: tuple[str, ...]) -> dict[str, Any]:
    """JSON Schema of a body, for the OpenAPI document. Refused parameters are not part of it."""
    properties = {
        parameter.name: {**_nullable(parameter.schema, parameter.name in required), "description": parameter.note}
        for parameter in parameters
        if parameter.treatment is not Treatment.REFUSED
    }
    return {"type": "object", "properties": properties, "required": list(required)}


def parameter_table(parameters: Iterable[Parameter]) -> str:
    """A Markdown table of the parameters, for the documentation."""
    lines = ["| parameter | values | what happens |", "|---|---|---|"]
    for parameter in sorted(parameters, key=lambda each: (list(Treatment).index(each.treatment), each.name)):
        if parameter.treatment is Treatment.REFUSED:
            harmless = " or ".join(f"`{shown(value)}`" for value in parameter.harmless)
            values = f"only {harmless}" if harmless else "none"
            what = f"refused by name: {parameter.note}"
        else:
            values = _wanted(parameter.schema) if "anyOf" not in parameter.schema else "see note"
            what = parameter.note if parameter.treatment is Treatment.HONOURED else f"no effect: {parameter.note}"
        lines.append(f"| `{parameter.name}` | {values} | {what} |")
    return "\n".join(lines)


def ignored_header(names: tuple[str, ...]) -> dict[str, str]:
    """The header that names ignored members; empty when there are none."""
    if not names:
        return {}
    shown = ", ".join(name for name in names if name.isascii() and name.isprintable())
    return {IGNORED_HEADER: shown[:400] or "(unprintable)"}


def _nullable(schema: Mapping[str, Any], is_required: bool) -> dict[str, Any]:
    return dict(schema) if is_required else {"anyOf": [dict(schema), {"type": "null"}]}


def _refusal(parameter: Parameter, value: Any) -> InvalidRequestError:
    name = parameter.name
    sentence = f"'{name}' is not supported: {parameter.note}"
    if parameter.harmless:
        allowed = " or ".join(shown(harmless) for harmless in parameter.harmless)
        return InvalidRequestError(name, sentence, hint=f"Leave it out or send {allowed}, not {shown(value)}.")
    return InvalidRequestError(name, sentence, hint="Leave it out.")


def _refuse_misspelling(name: str, known: Mapping[str, Parameter]) -> None:
    nearest = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.86)
    if nearest:
        raise InvalidRequestError(
            name[:100], f"there is no parameter '{name[:100]}'", hint=f"Did you mean '{nearest[0]}'?"
        )


def _checked(value: Any, schema: Mapping[str, Any], path: str) -> Any:
    """The value, whole floats as integers where integers are wanted. Knows the keywords of the tables above."""
    if "anyOf" in schema:
        return value  # read, with better words, by whoever knows the meaning
    wanted = schema.get("type")
    if wanted == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not _has_type(value, wanted) or not _is_in_range(value, schema):
        raise InvalidRequestError(path, f"'{path}' must be {_wanted(schema)}, not {shown(value)}")
    if isinstance(value, dict):
        return _checked_members(value, schema, path)
    if isinstance(value, list):
        _check_size(len(value), schema.get("minItems", 0), schema.get("maxItems"), path, "items")
    return value


def _checked_members(value: dict[str, Any], schema: Mapping[str, Any], path: str) -> dict[str, Any]:
    _check_size(len(value), 0, schema.get("maxProperties"), path, "members")
    if schema.keys().isdisjoint(("properties", "additionalProperties")):
        return value  # anything: whoever reads it knows what its members, and nulls, mean
    properties = schema.get("properties", {})
    additional = schema.get("additionalProperties", {})
    return {
        name: _checked(member, properties.get(name, additional), f"{path}/{name}")
        for name, member in value.items()
        if member is not None
    }


def _check_size(size: int, fewest: int, most: int | None, path: str, what: str) -> None:
    if size < fewest:
        raise InvalidRequestError(path, f"'{path}' must have at least {fewest} {what}")
    if most is not None and size > most:
        raise InvalidRequestError(path, f"'{path}' must have at most {most} {what}, not {size}")


def _has_type(value: Any, wanted: str | None) -> bool:
    match wanted:
        case None:
            return True
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
    return isinstance(value, dict)


def _is_in_range(value: Any, schema: Mapping[str, Any]) -> bool:
    if "enum" in schema:
        return value in schema["enum"]
    if "minimum" in schema:
        return bool(schema["minimum"] <= value <= schema["maximum"])
    return True


def _wanted(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(shown(value) for value in schema["enum"])
    words = _TYPE_NAMES.get(schema.get("type", ""), "another value")
    return f"{words} from {schema['minimum']} to {schema['maximum']}" if "minimum" in schema else words


def shown(value: Any) -> str:
    """A value in an error message: JSON, cut."""
    try:
        text = orjson.dumps(value).decode()
    except (TypeError, ValueError):  # integers beyond 64 bits, or too deep
        try:
            text = str(value)
        except RecursionError:
            return "a value nested too deeply"
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
