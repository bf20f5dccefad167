"""What the model is told about an embedded function: name, description and parameters, read from its JavaScript.

A leading JSDoc comment says it all; without one the names come from the destructured argument. The code is only looked
at here, in linear time, never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tampu.core.chat import ToolSpec
from tampu.core.errors import InvalidRequestError
from tampu.serving.requests import FunctionSpec

MAX_CODE_CHARS = 65_536

_COMMENT = re.compile(r"\s*/\*\*(?P<text>(?:[^*]|\*(?!/))*)\*/")
_TAG = re.compile(r"@(?P<tag>[a-z]+)[ \t]*(?P<rest>.*)")
_PARAM = re.compile(
    r"(?:\{(?P<type>[^{}]*)\}[ \t]*)?"
    r"(?P<name>\[(?:[^\[\]]|\[[^\[\]]*\])*\]|[\w$.]+)[ \t]*(?:-[ \t]*)?(?P<description>.*)"
)
_NAME = re.compile(r"[A-Za-z_$][\w$]*\Z")
_HEAD = re.compile(r"\s*(?:export\s+default\s+)?(?:async\b\s*)?(?:function\b\s*\*?\s*[\w$]*\s*)?\(\s*\{")
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_TYPES = {
    "number": "number", "float": "number", "integer": "integer", "int": "integer", "string": "string",
    "boolean": "boolean", "bool": "boolean", "object": "object", "array": "array", "null": "null",
}  # fmt: skip


def function_tool(function: FunctionSpec, index: int) -> ToolSpec:
    """The tool that stands for a function. `index` is its place in the request, for messages.

    Raises:
        InvalidRequestError: for code that is empty or too long, and for a function without a name.
    """
    where = f"functions/{index}"
    if not function.name:
        raise InvalidRequestError(f"{where}/name", f"'{where}/name' is empty")
    if not function.code.strip() or len(function.code) > MAX_CODE_CHARS:
        raise InvalidRequestError(
            f"{where}/code", f"'{where}/code' must hold a JavaScript function of at most {MAX_CODE_CHARS} characters"
        )
    comment = _COMMENT.match(function.code)
    text = comment["text"] if comment else ""
    code = function.code[comment.end() :] if comment else function.code
    description, properties, required = _read_comment(text)
    if not properties:
        for name, is_required in _destructured(code):
            properties[name] = {}
            if is_required:
                required.append(name)
    parameters: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    return ToolSpec(function.name, description, parameters)


def _read_comment(text: str) -> tuple[str, dict[str, Any], list[str]]:
    """Description, properties and required names of a JSDoc comment."""
    lines = [re.sub(r"^\s*\*? ?", "", line).rstrip() for line in text.splitlines()]
    description: list[str] = []
    properties: dict[str, Any] = {}
    required: list[str] = []
    is_tag = False
    last: dict[str, Any] | None = None
    for line in lines:
        tag = _TAG.match(line.strip())
        if tag is None:
            if not is_tag:
                description.append(line)
            elif last is not None and line.strip():
                last["description"] = f"{last.get('description', '')} {line.strip()}".strip()
            continue
        is_tag, last = True, None
        if tag["tag"] == "description":
            description.append(tag["rest"])
        elif tag["tag"] in ("param", "arg", "argument", "property"):
            last = _read_param(tag["rest"], properties, required)
    return " ".join(" ".join(description).split()), properties, required


def _read_param(rest: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any] | None:
    """Add one `@param` to the properties. The parameter that is the object itself adds nothing."""
    match = _PARAM.match(rest)
    if match is None:
        return None
    spelled = (match["type"] or "").strip()
    name = match["name"]
    is_optional = name.startswith("[") or spelled.endswith("=")
    name = name.lstrip("[").partition("=")[0].rstrip("]").strip()
    path = name.split(".")
    schema = _schema_of(spelled.rstrip("=").strip())
    if len(path) == 1 and schema.get("type") == "object" and not properties:
        return None
    name = path[1] if len(path) > 1 else path[0]
    if len(path) > 2 or not name:
        return None
    if match["description"].strip():
        schema["description"] = match["description"].strip()
    properties[name] = schema
    if not is_optional:
        required.append(name)
    return schema


def _schema_of(spelled: str) -> dict[str, Any]:
    """A JSDoc type as a schema; empty when it says nothing we know."""
    spelled = spelled.strip("?!() ")
    lowered = spelled.lower()
    if lowered.endswith("[]"):
        return {"type": "array", "items": _schema_of(lowered.removesuffix("[]"))}
    if lowered.startswith("array<") and lowered.endswith(">"):
        return {"type": "array", "items": _schema_of(lowered.removeprefix("array<")[:-1])}
    literals = [part.strip() for part in spelled.split("|")]
    if len(literals) > 1 and all(re.fullmatch(r"'[^']*'|\"[^\"]*\"", part) for part in literals):
        return {"type": "string", "enum": [part[1:-1] for part in literals]}
    known = _TYPES.get(lowered)
    return {"type": known} if known else {}


def _destructured(code: str) -> Iterator[tuple[str, bool]]:
    """Names in the destructured argument, and whether each has no default. Comments in the list are skipped."""
    head = _HEAD.match(code)
    if head is None:
        return
    for part in _parts(re.sub(r"/\*[^*]*\*/|//[^\n]*", "", code[head.end() : head.end() + 4096])):
        name, _, default = part.partition("=")
        name = name.partition(":")[0].strip()
        if _NAME.match(name):
            yield name, not default


def _parts(text: str) -> Iterator[str]:
    """What lies between the commas of a brace that was opened just before `text`."""
    expected = ["}"]
    quote = ""
    start = 0
    for position, char in enumerate(text):
        if quote:
            if char == quote:
                quote = ""
        elif char in "'\"`":
            quote = char
        elif char in _CLOSERS:
            expected.append(_CLOSERS[char])
        elif char == expected[-1]:
            expected.pop()
            if not expected:
                yield text[start:position]
                return
        elif char == "," and len(expected) == 1:
            yield text[start:position]
            start = position + 1
