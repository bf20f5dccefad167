"""Grammars for tool calls: forced ones, and ones that wait until the model begins a call.

A call is written in the form of the model's template. Knows tools and tokens, no requests.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tampu.core.chat import ToolSpec, shown_list, shown_name
from tampu.core.errors import UnsupportedSchemaError
from tampu.core.request import TokenMask
from tampu.text.closing import CallBudget, CallSize, ClosingTokens, call_size
from tampu.text.detokenizer import Detokenizer
from tampu.text.grammar import Grammar, GrammarCompiler, GrammarMatching, checked, dumped, normalized, styled
from tampu.text.json_schema import NormalizedSchemas, Schema
from tampu.text.schema_costs import refuse
from tampu.text.tool_calls import ToolCallParser, ToolCallPiece

MAX_PARALLEL_CALLS = 16
_MAX_HEAD_BYTES = 512  # of a call's beginning, up to the end of the tool's name


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a model family writes calls: `before` + JSON object + `after`, several joined by `between`.

    After `marker` a call must follow; `marker_closes` says that `after` belongs to it.
    """

    arguments_key: str
    before: str = ""
    after: str = ""
    between: str = "; "
    marker: str = ""
    marker_closes: bool = False


CALL_FORMS = {
    "llama3": CallForm("parameters", marker="<|python_tag|>"),
    "chatml": CallForm("arguments", "<tool_call>\n", "\n</tool_call>", "\n", "<tool_call>", True),
    "none": CallForm("arguments", between="\n"),
}


def forced_calls(compiler: GrammarCompiler, tools: Sequence[ToolSpec], *, kind: str, parallel: bool) -> CallsGrammar:
    """An answer that is one call to one of the tools (or one to sixteen calls, when `parallel`) and nothing else.

    `kind` is the chat template's. Raises UnsupportedSchemaError with the tool's name, and a path that begins with its
    place (`/tools/INDEX/parameters` for a tool that has none).
    """
    form = CALL_FORMS[kind]

    def make() -> Grammar:
        call = _joined(compiler.terminal(form.before), "json", compiler.terminal(form.after))
        more = f"({compiler.terminal(form.between)} call){{0,{MAX_PARALLEL_CALLS - 1}}}" if parallel else ""
        return compiler.from_lark(f"start: call {more}\ncall: {call}\njson: {_call_json(compiler, tools, form)}")

    grammar = compiler.cached(f"calls {kind} {parallel} {_tools_key(tools)}", make)
    return CallsGrammar(grammar, compiler, tuple(tools), call_size(compiler, grammar, tools))


def answer_or_calls(
    compiler: GrammarCompiler, schema: Any, tools: Sequence[ToolSpec], *, kind: str, parallel: bool
) -> CallsGrammar:
    """An answer that validates against `schema`, or calls as `forced_calls` has them: JSON mode beside tools.

    Raises UnsupportedSchemaError.
    """
    form = CALL_FORMS[kind]

    def make() -> Grammar:
        root, definitions = checked(compiler, *normalized(schema, compiler.limits.schema))
        call = _joined(compiler.terminal(form.before), "json", compiler.terminal(form.after))
        more = f"({compiler.terminal(form.between)} call){{0,{MAX_PARALLEL_CALLS - 1}}}" if parallel else ""
        answer = f"%json {json.dumps(styled(root, definitions))}"
        calls = f"call: {call}\njson: {_call_json(compiler, tools, form)}"
        return compiler.from_lark(f"start: answer | call {more}\nanswer: {answer}\n{calls}")

    key = f"answer or calls {kind} {parallel} {dumped(schema, '')} {_tools_key(tools)}"
    return CallsGrammar(compiler.cached(key, make), compiler, tuple(tools))


def auto_calls(compiler: GrammarCompiler, tools: Sequence[ToolSpec], *, kind: str, parallel: bool) -> AutoCallGrammar:
    """Free text, in which every call that begins must become a valid call to one of the tools.

    Without `parallel` the answer ends after the first call. Raises UnsupportedSchemaError like `forced_calls`.
    """
    form = CALL_FORMS[kind]

    def bare() -> Grammar:
        return compiler.from_lark(f"start: {_call_json(compiler, tools, form)}")

    def marked() -> Grammar:
        call = _joined(compiler.terminal(form.after)) if form.marker_closes else ""
        return compiler.from_lark(f"start: /[ \\n]?/ json {call}\njson: {_call_json(compiler, tools, form)}")

    key = _tools_key(tools)
    call = compiler.cached(f"call {kind} {key}", bare)
    return AutoCallGrammar(
        compiler=compiler,
        size=call_size(compiler, call, tools),
        bare=call,
        marked=compiler.cached(f"marked call {kind} {key}", marked) if form.marker else None,
        marker=form.marker.encode(),
        names=frozenset(json.dumps(tool.name, ensure_ascii=False).encode() for tool in tools),
        may_repeat=parallel,
    )


def _tools_key(tools: Sequence[ToolSpec]) -> str:
    return dumped([[tool.name, tool.parameters] for tool in tools], "/tools")


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _call_json(compiler: GrammarCompiler, tools: Sequence[ToolSpec], form: CallForm) -> str:
    """A call's JSON object in the library's grammar. Its keys stand in the order that the template has."""
    schemas = NormalizedSchemas(compiler.limits.schema)
    branches: list[Schema] = []
    places = [(tool.place or f"tools/{index}/parameters", tool) for index, tool in enumerate(tools)]
    for place, tool in places:
        try:
            schemas.costs.check_value(tool.name, "name", f"/{place.rpartition('/')[0]}")
            arguments = schemas.add(_object_schema(tool.parameters, f"/{place}"), path=f"/{place}")
        except UnsupportedSchemaError as error:
            raise _of_tool(error, tool, place) from None
        branches.append(_call_schema(tool.name, form.arguments_key, arguments))
    try:
        root, definitions = checked(compiler, {"anyOf": branches}, schemas)
    except UnsupportedSchemaError as error:
        for place, tool in places:
            if len(places) == 1 or error.path == f"/{place}" or error.path.startswith(f"/{place}/"):
                raise _of_tool(error, tool, place) from None
        raise _of_all(error, places) from None
    return f"%json {json.dumps(styled(root, definitions))}"


def _of_tool(error: UnsupportedSchemaError, tool: ToolSpec, place: str) -> UnsupportedSchemaError:
    """The error, which is about a tool's name or schema, with its name and its place."""
    if error.keyword == "name":
        place = f"{place.rpartition('/')[0]}/name"
    path = error.path or f"/{place}"
    message = str(error) if error.path else f"the schema at {path}: {error.reason}"
    return UnsupportedSchemaError(
        keyword=error.keyword,
        path=path,
        reason=error.reason,
        message=f"tool {shown_name(tool.name)}: {message}",
        field=place,
    )


def _of_all(error: UnsupportedSchemaError, places: Sequence[tuple[str, ToolSpec]]) -> UnsupportedSchemaError:
    """The error, which is about the schemas of several tools together, with where these are."""
    shown = shown_list([f"{shown_name(tool.name)} at /{place}" for place, tool in places])
    return UnsupportedSchemaError(
        keyword=error.keyword,
        path="",
        reason=error.reason,
        message=f"the tools {shown} together: {error.reason}",
        field=places[0][0].split("/", 1)[0],
    )


# Arguments whose schema has empty `properties` and nothing in these are none at all.
_ALLOWING_ARGUMENTS = frozenset(
    {"additionalProperties", "unevaluatedProperties", "patternProperties", "required", "minProperties"}
    | {"allOf", "anyOf", "oneOf", "$ref"},
)


def _object_schema(parameters: Any, path: str) -> Any:
    """Arguments are an object, whatever the schema leaves out. Raises UnsupportedSchemaError when it says otherwise."""
    if not parameters:
        return {"type": "object", "additionalProperties": False}
    if not isinstance(parameters, dict):
        return parameters
    declared = parameters.get("type", "object")
    if declared != "object" and not (isinstance(declared, list) and "object" in declared):
        refuse("type", path, "the parameters of a tool are an object")
    schema = {**parameters, "type": "object"}
    if schema.get("properties") == {} and all(schema.get(keyword) in (None, [], 0) for keyword in _ALLOWING_ARGUMENTS):
        schema["additionalProperties"] = False
    return schema


def _call_schema(name: str, arguments_key: str, arguments: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, arguments_key: arguments},
        "required": ["name", arguments_key],
        "additionalProperties": False,
    }


@dataclass(frozen=True, slots=True)
class CallsGrammar:
    """What `forced_calls` and `answer_or_calls` compile: makes a constraint for each request."""

    grammar: Grammar
    compiler: GrammarCompiler
    tools: tuple[ToolSpec, ...]
    size: CallSize | None = None  # where a call is demanded: it has to be complete when max_tokens are used up

    def new_matching(self) -> GrammarMatching:
        """The bare grammar, in which calls may repeat."""
        return self.grammar.new_matching()

    def new_constraint(self, max_tokens: int) -> CallsConstraint:
        """A fresh constraint, for one request that may have this many tokens."""
        return CallsConstraint(self, max_tokens)


class CallsConstraint:
    """A grammar of calls, which ends the answer after a call that repeats an earlier one: a `TokenConstraint`.

    A weak model that may write several calls is apt to write one again and again until `max_tokens` cuts it off. Where
    a call is demanded, the calls are also brought to an end before that (see CallBudget).
    """

    def __init__(self, calls: CallsGrammar, max_tokens: int) -> None:
        self._matching = calls.new_matching()
        self._budget: CallBudget | None = None
        # A later call is begun only where there is room for two. `max_tokens` need not hold the end's own token.
        size = calls.size
        self._is_promised = (
            size is not None and 0 < size.least_tokens <= max_tokens + 1 and size.leaves_room(max_tokens)
        )
        if calls.size is not None:
            tokens = ClosingTokens.of(calls.compiler)
            self._budget = CallBudget(tokens, self._matching, max_tokens=max_tokens, size=calls.size)
        self._compiler = calls.compiler
        self._decoder = Detokenizer(calls.compiler.tokenizer)
        self._parser = ToolCallParser(calls.tools)
        self._seen: set[str] = set()
        self._has_repeated = False
        self._pending: list[int] = []  # accepted, not looked at yet

    def next_mask(self) -> TokenMask | None:
        """See TokenConstraint."""
        pending, self._pending = self._pending, []
        for token_id in pending:
            self._advance(token_id)
        if self._has_repeated and self._matching.may_end:
            return self._compiler.end_mask
        mask = self._matching.next_mask()
        return mask if self._budget is None else self._budget.narrowed(mask, has_call=bool(self._seen))

    @property
    def is_cut_short(self) -> bool:
        """True when the answer would have gone on, had `max_tokens` been more."""
        return self._budget is not None and self._budget.has_narrowed

    def promises_call(self, num_tokens: int) -> bool:
        """True when a call in the making is certain to be completed, at any number of tokens."""
        return self._is_promised

    def accept(self, token_id: int) -> None:
        """See TokenConstraint. Only noted: the work is done for the next mask."""
        self._pending.append(token_id)

    def _advance(self, token_id: int) -> None:
        self._matching.accept(token_id)
        if self._budget is not None:
            self._budget.accept(token_id)
        for piece in self._parser.feed(self._decoder.add([token_id])):
            if isinstance(piece, ToolCallPiece):
                spelled = json.dumps([piece.call.name, piece.call.arguments])
                self._has_repeated = self._has_repeated or spelled in self._seen
                self._seen.add(spelled)


@dataclass(frozen=True, slots=True)
class AutoCallGrammar:
    """What `auto_calls` compiles: makes a constraint for each request."""

    compiler: GrammarCompiler
    size: CallSize
    bare: Grammar  # a call's JSON object
    marked: Grammar | None  # what follows the marker
    marker: bytes
    names: frozenset[bytes]  # as JSON strings
    may_repeat: bool

    def new_constraint(self, max_tokens: int) -> AutoCallConstraint:
        """A fresh constraint, for one request that may have this many tokens."""
        return AutoCallConstraint(self, max_tokens)


# The beginning of a call, up to the end of the tool's name. Bytes, since tokens may cut characters.
_HEAD = re.compile(rb'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("[^"\\]*")\Z')


class AutoCallConstraint:
    """Allows everything until the answer begins a call, then only what completes a valid one: a `TokenConstraint`.

    A call begins with the marker that the model family has for it, or with an object whose first key is `name` (after
    an optional `"type": "function"`) and has the name of a tool. Nothing is constrained before that: an answer that is
    JSON of another kind stays free. A call that has begun is brought to its end before `max_tokens` cut it, where
    they hold one when it begins; else it is cut where they end.
    """

    def __init__(self, grammar: AutoCallGrammar, max_tokens: int) -> None:
        self._grammar = grammar
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._budget: CallBudget | None = None  # of the call in the making
        # Numbers of tokens at which a call began that will be complete, and at which it was. Only ever added to, so
        # that another thread may ask about tokens which it has seen.
        self._promised_from: list[int] = []
        self._promised_to: list[int] = []
        self._has_cut_short = False  # a call that is complete
        self._head: bytearray | None = None  # the latest object's text so far, while it may begin a call
        self._tail = b""  # the last bytes, in which the marker is looked for
        self._matching: GrammarMatching | None = None
        self._has_ended = False
        self._pending: list[int] = []  # accepted, not looked at yet

    def next_mask(self) -> TokenMask | None:
        """See TokenConstraint."""
        pending, self._pending = self._pending, []
        for token_id in pending:
            self._advance(token_id)
        if self._has_ended:
            return self._grammar.compiler.end_mask
        if self._matching is None:
            return None
        mask = self._matching.next_mask()
        return mask if self._budget is None else self._budget.narrowed(mask, has_call=False)

    @property
    def is_cut_short(self) -> bool:
        """True when a call would have gone on, had `max_tokens` been more."""
        budget = self._budget  # read once: the engine's thread may forget it meanwhile
        return (budget is not None and budget.has_narrowed) or self._has_cut_short

    def promises_call(self, num_tokens: int) -> bool:
        """True when, after so many tokens of the answer, a call is in the making that is certain to be completed."""
        index = bisect_right(self._promised_from, num_tokens)
        return index > 0 and (len(self._promised_to) < index or num_tokens < self._promised_to[index - 1])

    def accept(self, token_id: int) -> None:
        """See TokenConstraint. Only noted inside a call: the work is done for the next mask.

        In free text it is small, and done at once, so that `promises_call` tells what it has to when the token is out.
        """
        if self._matching is None and not self._pending:
            self._advance(token_id)
        else:
            self._pending.append(token_id)

    def _advance(self, token_id: int) -> None:
        self._num_tokens += 1
        if self._matching is not None:
            self._matching.accept(token_id)
            if self._budget is not None:
                self._budget.accept(token_id)
            if self._matching.is_complete:
                self._end()
            return
        tokenizer = self._grammar.compiler.tokenizer
        data = tokenizer.token_bytes(token_id) or (tokenizer.special_name(token_id) or "").encode()
        if self._head is None and self._is_plain(data):
            return
        for position, byte in enumerate(data):
            begun = self._begins_call(byte)
            if begun is not None and self._start(*begun, data[position + 1 :]):
                return

    def _is_plain(self, data: bytes) -> bool:
        """True when nothing in these bytes begins a call, or the head of one; they are then passed over."""
        if b"{" in data:
            return False
        marker = self._grammar.marker
        if self._grammar.marked is not None:
            tail = self._tail + data
            if marker in tail:
                return False
            self._tail = tail[-len(marker) :]
        return True

    def _begins_call(self, byte: int) -> tuple[Grammar, bytes] | None:
        """The grammar that applies from here on and what is to be taken as read of it, if this byte begins a call."""
        marker = self._grammar.marker
        if self._grammar.marked is not None:
            self._tail = (self._tail + bytes([byte]))[-len(marker) :]
            if self._tail == marker:
                return self._grammar.marked, b""
        if byte == ord("{"):
            self._head = bytearray(b"{")
        elif self._head is not None:
            self._head.append(byte)
            if byte == ord('"') and (head := _HEAD.match(self._head)) and head[1] in self._grammar.names:
                return self._grammar.bare, b'{"name": ' + head[1]
            if len(self._head) > _MAX_HEAD_BYTES:
                self._head = None
        return None

    def _start(self, grammar: Grammar, read: bytes, rest: bytes) -> bool:
        """Constrain from here on, unless the token that began the call already went astray."""
        self._head, self._tail = None, b""
        matching = grammar.new_matching()
        byte_ids = self._grammar.compiler.byte_token_ids
        if not matching.accept_tokens([byte_ids[byte] for byte in read + rest if byte in byte_ids]):
            return False
        if matching.is_complete:
            self._has_ended = not self._grammar.may_repeat
            return True
        self._matching = matching
        tokens = ClosingTokens.of(self._grammar.compiler)
        left, size = self._max_tokens - self._num_tokens, self._grammar.size
        budget = CallBudget(tokens, matching, max_tokens=left, size=size, read=read + rest)
        if budget.has_room():
            self._budget = budget
            if size.leaves_room(left):
                self._promised_from.append(self._num_tokens)
        return True

    def _end(self) -> None:
        """The call is complete."""
        self._matching = None
        self._has_ended = not self._grammar.may_repeat
        if self._budget is not None:
            if self._budget.has_narrowed:  # nothing that is worth reading fits after it
                self._has_ended = self._has_cut_short = True
            self._budget = None
            if len(self._promised_to) < len(self._promised_from):
                self._promised_to.append(self._num_tokens)
