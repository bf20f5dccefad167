"""Options both protocols spell alike: stop, tool_choice, response_format. From JSON values to serving's values."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tampu.api.parameter_tables import shown
from tampu.core.chat import shown_list, shown_name
from tampu.core.errors import InvalidRequestError
from tampu.serving.requests import ResponseFormat, ToolChoice

MAX_STOP_STRINGS = 64
_MAX_STOP_CHARS = 1024
_MAX_BIASES = 1024
_WRAPPER = {"name", "description", "strict"}


def parse_stop(value: Any, field: str = "stop") -> tuple[str, ...]:
    """Stop strings: null, one string or an array of them. Empty strings are dropped: they would match everywhere.

    Raises:
        InvalidRequestError: for anything else, and for more or longer strings than we are ready to search for.
    """
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise InvalidRequestError(field, f"'{field}' must be a string or an array of strings, not {shown(value)}")
    if len(stops) > MAX_STOP_STRINGS or any(len(stop) > _MAX_STOP_CHARS for stop in stops):
        raise InvalidRequestError(
            field, f"'{field}' must hold at most {MAX_STOP_STRINGS} strings of at most {_MAX_STOP_CHARS} characters"
        )
    return tuple(dict.fromkeys(stop for stop in stops if stop))


def parse_logit_bias(value: Any, field: str = "logit_bias") -> tuple[tuple[int, float], ...]:
    """Token ids, as JSON spells keys, to what is added to their logits (-100 to 100).

    Raises:
        InvalidRequestError: naming the entry at fault.
    """
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise InvalidRequestError(field, f"'{field}' must map token ids to numbers, not be {shown(value)}")
    if len(value) > _MAX_BIASES:
        raise InvalidRequestError(field, f"'{field}' must map at most {_MAX_BIASES} token ids, not {len(value)}")
    biases = []
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise InvalidRequestError(field, f"'{field}' must map token ids, not {key[:40]!r}")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise InvalidRequestError(
                f"{field}/{key}", f"'{field}/{key}' must be a number from -100 to 100, not {shown(bias)}"
            )
        biases.append((int(key), float(bias)))
    return tuple(biases)


def parse_tool_choice(value: Any, field: str = "tool_choice") -> ToolChoice:
    """`auto`, `none`, `required` (also spelled `any`), a named function, or OpenAI's `allowed_tools`.

    Raises:
        InvalidRequestError: for anything else.
    """
    if value is None:
        return ToolChoice()
    if isinstance(value, str):
        mode = "required" if value == "any" else value
        if mode in ("auto", "none", "required"):
            return ToolChoice(mode)
    elif isinstance(value, dict):
        if value.get("type") == "allowed_tools":
            return _allowed_tools(value.get("allowed_tools", value), field)
        name = _function_name(value)
        if name is not None:
            return ToolChoice("named", (name,))
        if value.get("type") in ("auto", "none", "required", "any"):
            return parse_tool_choice(value["type"], field)
    raise InvalidRequestError(
        field,
        f'\'{field}\' must be "auto", "none", "required" or a function, not {shown(value)}',
        hint='To name a function send {"type": "function", "function": {"name": "..."}}.',
    )


def parse_offered_choice(value: Any, offered: Collection[str], field: str = "tool_choice") -> ToolChoice:
    """A choice among tools of these names.

    Raises:
        InvalidRequestError: for a choice of what is not offered, and as `parse_tool_choice` does.
    """
    choice = parse_tool_choice(value, field)
    for name in choice.names:
        if name not in offered:
            raise InvalidRequestError(
                field,
                f"'{field}' names the function {name!r}, which is not offered",
                hint=f"Offered are: {shown_list([shown_name(each) for each in sorted(offered)]) or 'none'}.",
            )
    if choice.mode == "required" and not offered:
        raise InvalidRequestError(
            field,
            f"'{field}' is \"required\" but no tools are offered",
            hint=f"Offer some in 'tools' or leave '{field}' out.",
        )
    return choice


def _allowed_tools(value: Any, field: str) -> ToolChoice:
    tools = value.get("tools") if isinstance(value, dict) else None
    names = [_function_name(tool) for tool in tools] if isinstance(tools, list) else []
    known = tuple(name for name in names if name is not None)
    if not known or len(known) != len(names) or value.get("mode", "auto") not in ("auto", "required"):
        raise InvalidRequestError(field, f"'{field}/allowed_tools' must hold a mode and a list of functions")
    return ToolChoice(value.get("mode", "auto"), known)


def _function_name(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else value.get("name")
    return name if isinstance(name, str) and name else None


def parse_response_format(
    value: Any, field: str = "response_format", *, member: str = "json_schema"
) -> ResponseFormat | None:
    """JSON mode: `json_object`, or `json_schema` with a bare schema or in OpenAI's `{name, schema, strict}` wrapper.

    `member` is what the route calls the schema, for errors where there is none.

    Raises:
        InvalidRequestError: for anything else.
    """
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return ResponseFormat()
    if kind == "json_schema":
        return _json_schema(value, field, member)
    if not isinstance(value, dict):
        raise InvalidRequestError(
            field, f"'{field}' must be an object, not {shown(value)}", hint='Send {"type": "json_object"}, for example.'
        )
    raise InvalidRequestError(
        f"{field}/type", f'\'{field}/type\' must be "text", "json_object" or "json_schema", not {shown(kind)}'
    )


def parse_json_mode(response_format: Any, guided_json: Any) -> ResponseFormat | None:
    """JSON mode as `response_format` or vLLM's `guided_json` asks for it.

    Raises:
        InvalidRequestError: for both, and for what is no schema.
    """
    named = parse_response_format(response_format)
    if guided_json is None:
        return named
    if named is not None:
        raise InvalidRequestError(
            "guided_json", "'guided_json' cannot be sent together with 'response_format'", hint="Send one of them."
        )
    if not isinstance(guided_json, dict | bool):
        raise InvalidRequestError(
            "guided_json",
            f"'guided_json' must be a JSON schema, not {shown(guided_json)}",
            hint="Send the schema as an object.",
        )
    return ResponseFormat(guided_json)


def _json_schema(value: dict[str, Any], field: str, member: str) -> ResponseFormat:
    """The schema beside the type: under `json_schema`, bare or wrapped, or under `schema`, as in `/responses`."""
    is_flat = "json_schema" not in value and not {"schema", *_WRAPPER}.isdisjoint(value)
    if is_flat or "json_schema" in value:
        member = "schema" if is_flat else "json_schema"
    holder, schema, path = value, value.get(member), f"{field}/{member}"
    if member == "json_schema" and isinstance(schema, dict) and _is_wrapper(schema):
        holder, schema, path = schema, schema.get("schema"), f"{path}/schema"
    if not isinstance(schema, dict | bool):
        raise InvalidRequestError(
            path, f"'{path}' must be a JSON schema, not {shown(schema)}", hint="Send the schema as an object."
        )
    name = holder.get("name")
    return ResponseFormat(schema, name if isinstance(name, str) else "", holder.get("strict") is True)


def _is_wrapper(value: dict[str, Any]) -> bool:
    """True for OpenAI's `{name, description, schema, strict}`, also where the schema was forgotten."""
    return "schema" in value or (value.keys() <= _WRAPPER and value.keys() != {"description"} and value != {})
