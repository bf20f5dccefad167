"""Brings a call to its end within a number of tokens. Knows tokens and JSON's notation, no requests.

A weak model may ramble in a string or an array until `max_tokens` cuts it off. Its call is followed here: when the
tokens left are about what a way to the end takes, masks are narrowed to tokens that close something, and in the last
resort to the tokens of that way. Masks are only ever narrowed, so what the grammar promises stays promised. What a
grammar allows and readers of JSON do not take is left out too: numbers without end, values nested without end.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from tampu.core.chat import ToolSpec
from tampu.core.request import TokenMask
from tampu.text.grammar import Grammar, GrammarCompiler, GrammarMatching
from tampu.text.tokenizer import Tokenizer

_CLOSES_STRING = re.compile(rb'"[ \n\]}]*')
_CLOSES_OTHER = re.compile(rb' ?(?:""|\[\]|\{\})?[ \n]*[\]}]+[ \n\]}]*| ?(?:""|\[\]|\{\})')
_GOES_ON = re.compile(rb"\s*,")
_NUMBER_BYTES = (*(b"%d" % digit for digit in range(10)), b".")
_BRIDGES = re.compile(rb"[}>]\s*[;\n,]")  # may end a call and begin the next in one token
_EXPONENT = re.compile(rb"[0-9.]*[eE].*", re.DOTALL)  # of a number that has begun
_NUMBER_WITH_EXPONENT = re.compile(rb"[^\"]*[0-9]\.?[eE].*", re.DOTALL)
_SLACK = 6  # tokens for choices of the model's own while things are being closed
_PATIENCE = 8  # tokens, before looking again for a way that was not found
_LONGEST_WAY = 512
_MAX_DEPTH = 16
_MAX_LEAST_CHARS = 4_000
_IMPATIENT_AFTER = 24  # tokens of one string: from then on a way out of a pattern's loop is tried
_LONG_NUMBER = 200  # characters; with 308 digits a number leaves the range that readers have
_DEEP = 48  # levels from which on nothing is opened that need not be; half of what the tool-call parser follows

Mask = npt.NDArray[np.uint8]
_LOCK = threading.Lock()
_OF_COMPILER: WeakKeyDictionary[GrammarCompiler, ClosingTokens] = WeakKeyDictionary()
_OF_GRAMMAR: WeakKeyDictionary[Grammar, CallSize] = WeakKeyDictionary()


class ClosingTokens:
    """The tokens of a vocabulary by what they do to JSON. Immutable; made once for a compiler."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        tokenizer = compiler.tokenizer
        spellings = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        longest_first = sorted(range(len(spellings)), key=lambda i: (-len(spellings[i]), i))
        self._rank = np.empty(len(spellings), dtype=np.int32)  # 0: the token with the longest spelling
        self._rank[longest_first] = np.arange(len(spellings), dtype=np.int32)
        self.end = np.frombuffer(compiler.end_mask, dtype=np.uint8)
        self._size = self.end.size
        self.closes_string = self._mask(i for i, s in enumerate(spellings) if _CLOSES_STRING.fullmatch(s))
        self.closes_other = self._mask(i for i, s in enumerate(spellings) if _CLOSES_OTHER.fullmatch(s))
        self.goes_on = self._mask(i for i, s in enumerate(spellings) if _GOES_ON.match(s))
        self.digits = self._mask(i for i, s in enumerate(spellings) if len(s) == 1 and s.isdigit())
        self.opens_string = self._mask(i for i, s in enumerate(spellings) if s.strip() == b'"')
        self.bridges = self._mask(i for i, s in enumerate(spellings) if _BRIDGES.search(s))
        self.no_exponent = ~self._mask(i for i, s in enumerate(spellings) if _NUMBER_WITH_EXPONENT.fullmatch(s))
        begun = self._mask(i for i, s in enumerate(spellings) if _EXPONENT.fullmatch(s))
        self.no_exponent_in_number = self.no_exponent & ~begun
        self.ends_number = ~self._mask(i for i, s in enumerate(spellings) if s[:1] in _NUMBER_BYTES)
        self.opens_nothing = ~self._mask(i for i, s in enumerate(spellings) if b"{" in s or b"[" in s)
        self.spellings = spellings

    @staticmethod
    def of(compiler: GrammarCompiler) -> ClosingTokens:
        """Those of a compiler's vocabulary."""
        with _LOCK:
            tokens = _OF_COMPILER.get(compiler)
            if tokens is None:
                tokens = _OF_COMPILER[compiler] = ClosingTokens(compiler)
            return tokens

    def _mask(self, token_ids: Iterator[int]) -> Mask:
        bits = np.zeros(self._size * 8, dtype=np.uint8)
        bits[list(token_ids)] = 1
        return np.packbits(bits, bitorder="little")

    def longest(self, mask: Mask) -> int | None:
        """The allowed token with the longest spelling, the lowest id of those; None when nothing is allowed."""
        places = np.flatnonzero(mask)  # few, mostly
        bits = np.unpackbits(mask[places], bitorder="little").reshape(-1, 8)
        rows, columns = np.nonzero(bits)
        token_ids = places[rows] * 8 + columns
        return int(token_ids[self._rank[token_ids].argmin()]) if token_ids.size else None

    def single(self, token_id: int) -> Mask:
        """The mask of one token."""
        mask = np.zeros(self._size, dtype=np.uint8)
        mask[token_id // 8] = 1 << (token_id % 8)
        return mask


class _Place:
    """Where in JSON the text is: inside a string, in a number, right after a backslash, or elsewhere, and how deep."""

    __slots__ = ("depth", "is_escaped", "is_in_string", "num_in_number", "num_in_string", "num_strings")

    def __init__(self, other: _Place | None = None) -> None:
        self.is_in_string: bool = other is not None and other.is_in_string
        self.is_escaped: bool = other is not None and other.is_escaped
        self.num_in_string: int = 0 if other is None else other.num_in_string  # tokens in a row
        self.num_in_number: int = 0 if other is None else other.num_in_number  # characters
        self.num_strings: int = 0 if other is None else other.num_strings  # that have ended
        self.depth: int = 0 if other is None else other.depth  # open objects and arrays

    def feed(self, data: bytes) -> bool:
        """Advance; True when the text lies inside one string from start to end."""
        was_inside = self.is_in_string
        for byte in data:
            if self.is_escaped:
                self.is_escaped = False
            elif byte == 0x22:
                self.num_strings += self.is_in_string
                self.is_in_string = not self.is_in_string
                was_inside = False
            elif byte == 0x5C and self.is_in_string:
                self.is_escaped = True
            elif not self.is_in_string:
                self.depth += (byte in b"{[") - (byte in b"}]")
            is_in_number = not self.is_in_string and byte in b"0123456789."
            self.num_in_number = self.num_in_number + 1 if is_in_number else 0
        self.num_in_string = self.num_in_string + 1 if was_inside else 0
        return was_inside


@dataclass(frozen=True, slots=True)
class CallSize:
    """What calls to some tools take, in tokens."""

    least_tokens: int  # a short call, its end included
    jump_tokens: int  # by how many tokens a single one may lengthen the way to the end, about
    name_jump_tokens: int = 0  # the same for the token that decides which tool is called

    def leaves_room(self, max_tokens: int) -> bool:
        """True when no jump takes so much of the budget that CallBudget would count with less than it may be."""
        return self.jump_tokens <= max_tokens // 2


class CallBudget:
    """Follows the tokens of one request, or of one call in it, and narrows its masks when the budget runs out.

    `read` is what `matching` has accepted already.
    """

    def __init__(
        self,
        tokens: ClosingTokens,
        matching: GrammarMatching,
        *,
        max_tokens: int,
        size: CallSize,
        read: bytes = b"",
    ) -> None:
        self.has_narrowed = False
        self._tokens = tokens
        self._matching = matching
        self._left = max_tokens
        self._jump = min(size.jump_tokens, max_tokens // 2)
        self._name_jump = max(self._jump, size.name_jump_tokens)
        self._least = size.least_tokens
        self._num_strings_before = 0  # where the current call began
        self._place = _Place()
        self._place.feed(read)
        self._look_at = max_tokens  # tokens left at which a way may be looked for again
        self._way: list[int] = []  # tokens to the end from here, the end included; empty = unknown
        self._way_bound = size.least_tokens  # what the way takes at most, while it is not worth looking for

    def has_room(self) -> bool:
        """True when the call can be brought to its end from here."""
        if self._left > self._way_bound + self._least + self._name_jump + _SLACK:
            return self._least > 0
        self._look_for_way()
        return bool(self._way)

    def accept(self, token_id: int) -> None:
        """Advance by a token; `matching` has accepted it already."""
        self._left -= 1
        is_inside = self._place.feed(self._tokens.spellings[token_id])
        if self._way and self._way[0] == token_id:
            self._way = self._way[1:]
            self._way_bound = len(self._way)
        else:
            self._way = []
            self._way_bound += 0 if is_inside else self._jump_here

    def narrowed(self, allowed: TokenMask, *, has_call: bool) -> TokenMask:
        """The mask, narrowed as far as the budget demands. `has_call`: at least one call is complete."""
        allowed = self._readable(allowed)
        if has_call and self._matching.may_end:
            self._num_strings_before = self._place.num_strings
            if self._left <= 2 * self._least + self._name_jump:
                return self._tokens.end.tobytes()
        jump = self._jump_here
        if self._left > self._way_bound + self._least + self._name_jump + _SLACK:
            return allowed
        mask = np.frombuffer(allowed, dtype=np.uint8)
        if not self._way and self._left <= self._look_at:
            self._look_for_way()
        without_next_call = mask & ~self._tokens.bridges
        if without_next_call.any():
            mask = without_next_call
        if self._left > self._way_bound + jump + _SLACK:
            return mask.tobytes()
        narrow = self._closing(mask, jump)
        if narrow.tobytes() != allowed:
            self.has_narrowed = True
        return narrow.tobytes()

    def _look_for_way(self) -> None:
        limit = min(self._left + 1, _LONGEST_WAY)
        self._way = way_to_end(self._tokens, self._matching, self._place, limit=limit)
        if not self._way:
            self._look_at = self._left - _PATIENCE
        self._way_bound = len(self._way) or self._left

    def _readable(self, allowed: TokenMask) -> TokenMask:
        """Without what is JSON, but no value that a client could read: 9e999, a million digits, a thousand levels."""
        place, tokens = self._place, self._tokens
        preferred = [tokens.opens_nothing] if place.depth >= _DEEP else []
        if not place.is_in_string:
            preferred.append(tokens.no_exponent_in_number if place.num_in_number else tokens.no_exponent)
            if place.num_in_number >= _LONG_NUMBER:
                preferred.append(tokens.ends_number)
        if not preferred:
            return allowed
        mask = np.frombuffer(allowed, dtype=np.uint8)
        for kept in preferred:
            narrow = mask & kept
            if narrow.any():
                mask = narrow
        return mask.tobytes()

    @property
    def _jump_here(self) -> int:
        is_named = self._place.num_strings >= self._num_strings_before + 2  # the key `name` and its value
        return self._jump if is_named else self._name_jump

    def _closing(self, mask: Mask, jump: int) -> Mask:
        if not self._way:
            closers = closing(self._tokens, mask, self._place)
            return mask if closers is None else closers
        only = self._tokens.single(self._way[0])
        if self._left <= len(self._way) + 1:
            return only
        closers = closing(self._tokens, mask, self._place)
        if closers is not None:
            return closers
        return only if self._left <= len(self._way) + jump else mask


def closing(tokens: ClosingTokens, mask: Mask, place: _Place) -> Mask | None:
    """What of a mask brings the end nearer, None when nothing is known to: there the grammar demands something."""
    if place.is_escaped:
        return None
    kinds = (tokens.closes_string,) if place.is_in_string else (tokens.end, tokens.closes_other, tokens.goes_on)
    for kind in kinds:
        closers = mask & kind
        if closers.any():
            return closers
    return None


def way_to_end(tokens: ClosingTokens, matching: GrammarMatching, place: _Place, *, limit: int) -> list[int]:
    """A short way (not always the shortest) from here to the end, the end's token included; empty = none found."""
    matching, place = matching.copy(), _Place(place)
    way: list[int] = []
    tried: set[int] = set()
    while len(way) < limit:
        mask = np.frombuffer(matching.next_mask(), dtype=np.uint8)
        token_id = _step(tokens, mask, place, tried)
        if token_id is None:
            return []
        way.append(token_id)
        if tokens.end[token_id // 8] >> (token_id % 8) & 1:
            return way
        matching.accept(token_id)
        place.feed(tokens.spellings[token_id])
        tried.add(token_id)
        if not place.is_in_string:
            tried.clear()
    return []


def _step(tokens: ClosingTokens, mask: Mask, place: _Place, tried: set[int]) -> int | None:
    closers = closing(tokens, mask, place)
    if closers is not None:
        return tokens.longest(closers)
    if not place.is_in_string:
        for kind in (tokens.digits, tokens.opens_string):
            if (mask & kind).any():
                return tokens.longest(mask & kind)
    elif place.num_in_string >= _IMPATIENT_AFTER:
        untried = mask.copy()
        for token_id in tried:
            untried[token_id // 8] &= ~(1 << (token_id % 8)) & 0xFF
        if untried.any():
            return tokens.longest(untried)
    return tokens.longest(mask)


def call_size(compiler: GrammarCompiler, grammar: Grammar, tools: Sequence[ToolSpec]) -> CallSize:
    """Measure a grammar of calls to these tools; once for each grammar."""
    with _LOCK:
        size = _OF_GRAMMAR.get(grammar)
    if size is None:
        size = _measured(compiler, grammar, tools)
        with _LOCK:
            _OF_GRAMMAR[grammar] = size
    return size


def _measured(compiler: GrammarCompiler, grammar: Grammar, tools: Sequence[ToolSpec]) -> CallSize:
    way = way_to_end(ClosingTokens.of(compiler), grammar.new_matching(), _Place(), limit=_LONGEST_WAY)
    tokenizer = compiler.tokenizer
    arguments = [json.dumps(tool.name) + _least(tool.parameters, tool.parameters, 0) for tool in tools]
    name_jump = max(len(tokenizer.encode(text)) for text in arguments) if len(tools) > 1 else 0
    return CallSize(len(way), _longest_jump(tokenizer, tools), name_jump)


def _longest_jump(tokenizer: Tokenizer, tools: Sequence[ToolSpec]) -> int:
    """By how many tokens one more token may lengthen the way to a call's end, about: what one value can demand."""
    texts = {"{}"}
    for tool in tools:
        texts.add(json.dumps(tool.name))
        for key, node in _nodes(tool.parameters):
            if node is not tool.parameters:
                texts.add(f"{json.dumps(key, ensure_ascii=False)}: {_least(node, tool.parameters, 0)}, ")
    return max(len(tokenizer.encode(text)) for text in texts) + 2


def _nodes(value: Any) -> Iterator[tuple[str, Any]]:
    """Everything in a schema that may be a schema, with the key it stands under."""
    pending = [("", value)]
    while pending:
        key, node = pending.pop()
        if isinstance(node, dict):
            yield key, node
            pending += node.items()
        elif isinstance(node, list):
            pending += (("", item) for item in node)


def _least(node: Any, root: Any, depth: int) -> str:
    """A short value of a schema as JSON text: the longest of the least that its branches have."""
    if not isinstance(node, dict) or depth > _MAX_DEPTH:
        return '""'
    if isinstance(reference := node.get("$ref"), str):
        return _least(_resolved(reference, root), root, depth + 1)
    for keyword in ("anyOf", "oneOf", "allOf"):
        if isinstance(branches := node.get(keyword), list) and branches:
            return max((_least(branch, root, depth + 1) for branch in branches), key=len)
    if "const" in node:
        return json.dumps(node["const"], ensure_ascii=False)
    if isinstance(values := node.get("enum"), list) and values:
        return max((json.dumps(value, ensure_ascii=False) for value in values), key=len)
    declared = node.get("type")
    kinds = declared if isinstance(declared, list) else [declared]
    return max((_least_of_type(kind, node, root, depth) for kind in kinds), key=len, default='""')[:_MAX_LEAST_CHARS]


def _least_of_type(kind: Any, node: dict[str, Any], root: Any, depth: int) -> str:
    if kind == "object" or (kind is None and "properties" in node):
        properties, required = node.get("properties"), node.get("required")
        known = properties if isinstance(properties, dict) else {}
        demanded = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
        listed = list(known)
        last = max((listed.index(name) + 1 for name in demanded if name in known), default=0)
        # The way may lead over optional members that come before a required one: it does not know them apart.
        names = [*listed[:last], *(name for name in demanded if name not in known)]
        members = (f"{json.dumps(n, ensure_ascii=False)}: {_least(known.get(n), root, depth + 1)}" for n in names[:64])
        return "{" + ", ".join(members) + "}"
    if kind == "array":
        return "[" + ", ".join([_least(node.get("items"), root, depth + 1)] * _count(node.get("minItems"), 64)) + "]"
    if kind in ("integer", "number"):
        bounds = [str(node[k]) for k in ("minimum", "maximum", "multipleOf", "exclusiveMinimum") if k in node]
        return max(["10", *bounds], key=len)
    return (
        '"' + "-" * max(_count(node.get("minLength"), 1000), 24 if "pattern" in node or "format" in node else 0) + '"'
    )


def _count(value: Any, limit: int) -> int:
    return min(value, limit) if isinstance(value, int) and value > 0 else 0


def _resolved(reference: str, root: Any) -> Any:
    node = root
    for part in reference.removeprefix("#").split("/")[1:]:
        node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
    return node
