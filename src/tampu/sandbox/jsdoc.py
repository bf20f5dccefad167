"""What a JavaScript function says about itself: a tool description and a JSON schema of its parameters.

Reads the source, never runs it: a leading JSDoc comment first, then the destructured argument. Whatever is not
understood is left out, which makes the schema wider, never wrong. Linear in the length of the source; what is read
character by character, and again for each level of a type, is bounded (`MAX_DESCRIBING_CHARS`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tampu.core.chat import ToolSpec
from tampu.core.errors import InvalidRequestError

MAX_DESCRIBING_CHARS = 8_000  # of the JSDoc comment, and of the first parameter
_MAX_SOURCE_CHARS = 1 << 16  # what is written further on describes nothing
_MAX_TYPE_DEPTH = 8
_MAX_PIECES = 20_000  # strings, comments, brackets and declarations among which the function is looked for
_COMMENT = re.compile(r"\s*(?://[^\n]*(?:\n|$)|/\*(?P<block>[\s\S]*?)\*/)")
_EXPORT = re.compile(r"\s*export\s+(?:default\s+)?")
_NAMED = re.compile(r"\s*(?:(?:const|let|var)\s+(?P<variable>[A-Za-z_$][\w$]*)\s*=\s*)?")
_HEAD = re.compile(r"\s*\(*\s*(?:async\b\s*)?(?:function\b\s*\*?\s*(?P<name>[A-Za-z_$][\w$]*)?\s*)?(?P<open>\()?")
_SINGLE = re.compile(r"\s*\(*\s*(?:async\s+)?(?P<name>[A-Za-z_$][\w$]*)\s*=>")
_TAG = re.compile(r"^@(\w+)\s*(.*)$", re.DOTALL)
_PARAM_NAME = re.compile(r"(\[?)\s*([\w$.]+)\s*(?:=\s*([^\]]*))?\]?\s*(?:-\s*)?(.*)$", re.DOTALL)
_IDENTIFIER = re.compile(r"[A-Za-z_$][\w$]*")
_TYPES = {
    "string": "string",
    "number": "number",
    "bigint": "integer",
    "integer": "integer",
    "int": "integer",
    "float": "number",
    "boolean": "boolean",
    "bool": "boolean",
    "object": "object",
    "array": "array",
    "null": "null",
    "date": "string",
}

Schema = dict[str, Any]


@dataclass(slots=True)
class _Parameter:
    """One property of the object the function takes."""

    schema: Schema = field(default_factory=dict)
    is_required: bool = True


def describe_function(code: str, name: str = "") -> ToolSpec:
    """The tool a function is. `name` wins over the function's own name.

    Raises:
        InvalidRequestError: for a JSDoc comment or a parameter that is too long to read; its field is "code".
    """
    comment, rest = _leading_comment(_from_what_runs(code[:_MAX_SOURCE_CHARS], name))
    own_name, found = _head(rest)
    argument = found or ""
    _check_length("JSDoc comment", comment)
    _check_length("first parameter", argument)
    description, documented = _read_jsdoc(comment, argument.strip())
    parameters = dict(documented)
    for key, parameter in _destructured(argument).items():
        if key not in parameters:
            parameters[key] = parameter
        elif not parameter.is_required:
            parameters[key].is_required = False
            if "default" in parameter.schema:
                parameters[key].schema.setdefault("default", parameter.schema["default"])
    schema: Schema = {"type": "object"}
    if parameters or (found is not None and _takes_nothing(found)):
        schema["properties"] = {key: p.schema for key, p in parameters.items()}
    required = [key for key, p in parameters.items() if p.is_required]
    if required:
        schema["required"] = required
    return ToolSpec(name or own_name, description, schema)


def _takes_nothing(argument: str) -> bool:
    """True for `()` and `({})`. A plain name, and `{...rest}`, may be given anything."""
    text = _strip_comments(argument)
    return not text or (text.startswith("{") and not _strip_comments(_until(text, 1, "}")))


def _check_length(what: str, text: str) -> None:
    if len(text) > MAX_DESCRIBING_CHARS:
        raise InvalidRequestError(
            "code",
            f"the function's {what} is longer than {MAX_DESCRIBING_CHARS} characters",
            hint="Shorten it: it describes the function to the model.",
        )


# -- which function it is ---------------------------------------------------------------------------------------------

# Strings and comments without their end count as well: each character is then looked at once.
_PIECE = re.compile(
    r"""(?P<comment>//[^\n]*|/\*(?:[^*]|\*(?!/))*(?:\*/)?)
    |"(?:[^"\\\n]|\\[\s\S])*"?|'(?:[^'\\\n]|\\[\s\S])*'?|`(?:[^`\\]|\\[\s\S])*`?
    |(?P<brackets>[()\[\]{}]+)
    |(?<![\w$.])(?:export\s+(?:default\s+)?)?(?:(?:const|let|var)\s+(?P<variable>[A-Za-z_$][\w$]*)\s*=(?![=>])
      |(?:async\s+)?function\b\s*(?:\*\s*)?(?P<function>[A-Za-z_$][\w$]*))""",
    re.VERBOSE,
)
_BEGINS_FUNCTION = re.compile(r"\s*(?:\(\s*)*(?:async\b\s*)?(?:function\b|\(|[A-Za-z_$][\w$]*\s*=>)")


@dataclass(slots=True)
class _Declaration:
    """A variable or a function that is declared outside all brackets."""

    name: str
    begin: int  # with the comments right before it
    is_first: bool  # nothing but comments stands before it
    may_run: bool  # a function, or a variable that looks like one
    is_variable: bool


def _from_what_runs(code: str, name: str) -> str:
    """The code from the function on that the sandbox calls, its comments included: helpers may stand before it.

    The order is the worker's: code that is one expression, the declaration of that name, the last variable that is a
    function, the only function.
    """
    declared = _declarations(code)
    if not declared or (len(declared) == 1 and declared[0].is_first):
        return code
    named = [found for found in declared if found.name == name]
    variables = [found for found in declared if found.is_variable and found.may_run]
    functions = [found for found in declared if not found.is_variable]
    chosen = named[-1:] or variables[-1:] or (functions if len(functions) == 1 else [])
    return code[chosen[0].begin :] if chosen else ""


def _declarations(code: str) -> list[_Declaration]:
    """All that are found; a regular expression in the source that looks like brackets may hide or add some."""
    found: list[tuple[int, _Declaration]] = []  # how deep in brackets, and what
    depth = 0
    is_first = True
    comments_begin = comments_end = 0  # of the comments that directly follow each other
    for piece in islice(_PIECE.finditer(code), _MAX_PIECES):
        is_adjacent = not code[comments_end : piece.start()].strip()
        if piece["comment"] is not None:
            if not is_adjacent:
                is_first, comments_begin = False, piece.start()
            comments_end = piece.end()
            continue
        is_first = is_first and is_adjacent
        name = piece["variable"] or piece["function"]
        if name is not None:
            begin = comments_begin if is_adjacent else piece.start()
            may_run = piece["variable"] is None or _BEGINS_FUNCTION.match(code, piece.end()) is not None
            found.append((depth, _Declaration(name, begin, is_first, may_run, piece["variable"] is not None)))
        for bracket in piece["brackets"] or "":
            depth = depth + 1 if bracket in "([{" else max(depth - 1, 0)
        is_first = False
        comments_begin = comments_end = piece.end()
    return [declaration for at, declaration in found if at == 0 or depth > 0]


# -- the head of the function -----------------------------------------------------------------------------------------


def _leading_comment(code: str) -> tuple[str, str]:
    """(text of the last JSDoc comment before the function, the code after all leading comments)."""
    comment, position = "", 0
    while match := _COMMENT.match(code, position):
        block = match.group("block")
        if block is not None and block.startswith("*"):
            comment = block[1:]
        position = match.end()
    return comment, code[position:]


def _head(code: str) -> tuple[str, str | None]:
    """(name or "", source of the first parameter or "" if there is none); None for what is not understood."""
    if match := _EXPORT.match(code):
        code = code[match.end() :]
    match = _NAMED.match(code)
    assert match is not None
    variable = match.group("variable") or ""
    code = code[match.end() :]
    if single := _SINGLE.match(code):
        return variable, single.group("name")
    head = _HEAD.match(code)
    assert head is not None
    begin = head.end()
    if head.group("open") is None:
        # An arrow function: the greedy run of brackets took the parameter list's own.
        bracket = code.find("(", 0, head.end())
        if bracket < 0:
            return variable or head.group("name") or "", None
        begin = code.rfind("(", 0, head.end()) + 1
    argument = _until(code[: begin + MAX_DESCRIBING_CHARS + 1], begin, ",)")
    # In brackets may stand a call, whose result is the function: `(() => ({city}) => city)()`.
    is_wrapped = "(" in code[: begin - 1]
    return variable or head.group("name") or "", None if is_wrapped and not argument.strip() else argument


def _until(text: str, begin: int, ends: str) -> str:
    """Text from `begin` to the first of `ends` outside brackets, strings and comments; to the end if there is none."""
    depth, position = 0, begin
    while position < len(text):
        char = text[position]
        if depth == 0 and char in ends:
            break
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char in "\"'`":
            position = _skip_string(text, position)
            continue
        elif char == "/" and text[position + 1 : position + 2] in ("/", "*"):
            close = text.find("\n" if text[position + 1] == "/" else "*/", position + 2)
            position = len(text) if close < 0 else close + 1 + (text[position + 1] == "*")
            continue
        position += 1
    return text[begin:position]


def _skip_string(text: str, position: int) -> int:
    quote = text[position]
    position += 1
    while position < len(text) and text[position] != quote:
        position += 2 if text[position] == "\\" else 1
    return position + 1


def _split(text: str) -> list[str]:
    """Parts between commas outside brackets and strings."""
    parts, position = [], 0
    while position < len(text):
        part = _until(text, position, ",")
        parts.append(part)
        position += len(part) + 1
    return parts


def _strip_comments(text: str) -> str:
    while match := _COMMENT.match(text):
        text = text[match.end() :]
    return text.strip()


def _destructured(argument: str) -> dict[str, _Parameter]:
    """Properties named in `{ a, b = 1, c: d, ...rest }`; none for a plain name."""
    argument = argument.strip()
    if not argument.startswith("{"):
        return {}
    parameters: dict[str, _Parameter] = {}
    for part in _split(_until(argument, 1, "}")):
        item = _strip_comments(part)
        match = _IDENTIFIER.match(item)
        if match is None:
            if not item.startswith(("'", '"')):
                continue  # ...rest, or a computed name
            end = _skip_string(item, 0)
            key, rest = item[1 : end - 1], item[end:]
        else:
            key, rest = match.group(), item[match.end() :]
        default = _after_equals(rest)
        schema = {} if default is None else _schema_of_literal(default)
        if rest.lstrip().startswith(":") and rest.lstrip()[1:].lstrip().startswith("{"):
            schema.setdefault("type", "object")
        parameters[key] = _Parameter(schema, default is None)
    return parameters


def _after_equals(text: str) -> str | None:
    before = _until(text, 0, "=")
    return text[len(before) + 1 :].strip() if len(before) < len(text) else None


def _schema_of_literal(text: str) -> Schema:
    """Type and value of a default, as far as it is a plain literal."""
    if text in ("true", "false"):
        return {"type": "boolean", "default": text == "true"}
    if re.fullmatch(r"-?\d{1,15}", text):
        return {"type": "number", "default": int(text)}
    if re.fullmatch(r"-?\d{1,15}\.\d{1,15}", text):
        return {"type": "number", "default": float(text)}
    if len(text) >= 2 and text[0] in "\"'`" and _skip_string(text, 0) == len(text):
        body = text[1:-1]
        return {"type": "string"} if "\\" in body or "${" in body else {"type": "string", "default": body}
    if text.startswith("["):
        return {"type": "array", "default": []} if text == "[]" else {"type": "array"}
    if text.startswith("{"):
        return {"type": "object", "default": {}} if text == "{}" else {"type": "object"}
    return {}


# -- JSDoc ------------------------------------------------------------------------------------------------------------


def _read_jsdoc(comment: str, argument_name: str) -> tuple[str, dict[str, _Parameter]]:
    """(description, properties of the one argument in order)."""
    lines = [re.sub(r"^\s*\*? ?", "", line).rstrip() for line in comment.split("\n")]
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.lstrip().startswith("@"):
            blocks.append([line.strip()])
        else:
            blocks[-1].append(line)
    description = _joined(blocks[0])
    params: list[tuple[str, _Parameter, Schema]] = []
    for block in blocks[1:]:
        match = _TAG.match("\n".join(block))
        if match is None:
            continue
        tag, text = match.groups()
        if tag in ("description", "desc") and not description:
            description = _joined(text.split("\n"))
        elif tag in ("param", "arg", "argument", "property", "prop"):
            entry = _read_param(text)
            if entry is not None:
                params.append(entry)
    return description, _properties(params, argument_name)


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _read_param(text: str) -> tuple[str, _Parameter, Schema] | None:
    """`{type} name - description`, `[name]`, `[name=default]`, `object.name`."""
    schema: Schema = {}
    is_optional = False
    text = text.lstrip()
    if text.startswith("{"):
        source = _until(text, 1, "}")
        text = text[len(source) + 2 :]
        if source.strip().endswith("="):
            source, is_optional = source.strip()[:-1], True
        schema = _read_type(source)
    match = _PARAM_NAME.match(text.strip())
    if match is None:
        return None
    bracket, name, default, description = match.groups()
    if default is not None:
        value = _schema_of_literal(default.strip())
        if "default" in value:
            schema = {**{key: value[key] for key in ("type",) if "type" not in schema}, **schema}
            schema["default"] = value["default"]
    if description_text := _joined(description.split("\n")):
        schema["description"] = description_text
    return name, _Parameter(schema, not (bracket or is_optional)), schema


def _properties(params: list[tuple[str, _Parameter, Schema]], argument_name: str) -> dict[str, _Parameter]:
    """From documented names to properties: `args.city` and, when nothing else documents `args`, its own type's."""
    roots = {name.split(".", 1)[0] for name, _, _ in params if "." in name}
    properties: dict[str, _Parameter] = {}
    for name, parameter, schema in params:
        if "." in name:
            key = name.split(".")[1]
            if name.count(".") == 1:
                properties[key] = parameter
            continue
        is_whole_object = (
            name in roots
            or name == argument_name
            or (
                len(params) == 1
                and schema.get("type") == "object"
                and argument_name.startswith("{")
                and name not in argument_name
            )
        )
        if not is_whole_object:
            properties[name] = parameter
            continue
        required = schema.get("required", [])
        for key, value in schema.get("properties", {}).items():
            properties.setdefault(key, _Parameter(value, key in required))
    return properties


def _read_type(source: str, depth: int = 0) -> Schema:
    """A JSDoc type as a JSON schema; {} for what has no schema here."""
    if depth > _MAX_TYPE_DEPTH:
        return {}
    source = source.strip()
    for _ in range(_MAX_TYPE_DEPTH):
        if not (source.startswith("(") and source.endswith(")") and len(_until(source, 1, ")")) == len(source) - 2):
            break
        source = source[1:-1].strip()
    if not source:
        return {}
    options = _split_union(source)
    if len(options) > 1:
        return _read_union(options, depth)
    if source.startswith(("?", "!")):
        inner = _read_type(source[1:], depth + 1)
        if source[0] == "?" and isinstance(inner.get("type"), str):
            inner["type"] = [inner["type"], "null"]
        return inner
    if source.endswith("[]"):
        return _array(_read_type(source[:-2], depth + 1))
    if match := re.fullmatch(r"(?:Array|ReadonlyArray|Set)\s*(?:\.\s*)?<([\s\S]*)>", source):
        return _array(_read_type(match.group(1), depth + 1))
    if re.match(r"(?:Object|Record|Map)\s*(?:\.\s*)?<", source):
        return {"type": "object"}
    if source.startswith("{"):
        return _read_record(_until(source, 1, "}"), depth)
    literal = _schema_of_literal(source)
    if "default" in literal and source[0] not in "[{":
        return {"enum": [literal["default"]]}
    known = _TYPES.get(source.lower())
    return {} if known is None else {"type": known}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items} if items else {"type": "array"}


def _split_union(source: str) -> list[str]:
    parts, position, depth = [], 0, 0
    start = 0
    while position < len(source):
        char = source[position]
        if char in "\"'`":
            position = _skip_string(source, position)
            continue
        if char in "([{<":
            depth += 1
        elif char in ")]}>":
            depth -= 1
        elif char == "|" and depth == 0:
            parts.append(source[start:position])
            start = position + 1
        position += 1
    parts.append(source[start:])
    return [part.strip() for part in parts if part.strip()]


def _read_union(options: list[str], depth: int) -> Schema:
    schemas = [_read_type(option, depth + 1) for option in options if option != "undefined"]
    if not all(schemas):
        return {}
    if all(schema.keys() == {"enum"} for schema in schemas):
        return {"enum": [value for schema in schemas for value in schema["enum"]]}
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _read_record(source: str, depth: int) -> Schema:
    """`city: string, days?: number`; semicolons separate as well."""
    properties: Schema = {}
    required: list[str] = []
    position = 0
    while position < len(source):
        part = _until(source, position, ",;\n")
        position += len(part) + 1
        match = re.match(r"\s*(?:readonly\s+)?[\"']?([\w$-]+)[\"']?\s*(?:(\?)\s*)?(?::([\s\S]*))?$", part)
        if match is None:
            continue
        key, optional, kind = match.groups()
        properties[key] = _read_type(kind or "", depth + 1)
        if not optional:
            required.append(key)
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return schema
