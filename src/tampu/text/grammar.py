"""Grammars that hold an answer to a JSON schema, as token constraints for the engine. Built on `llguidance`.

Compiling happens in threads of its own, with limits on size and time; compiled grammars are kept in memory, bounded.
Knows schemas and tokens, no requests and no HTTP.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NoReturn, TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from tampu.core.request import TokenConstraint, TokenMask
from tampu.text.json_schema import NormalizedSchemas, Schema
from tampu.text.schema_costs import SchemaLimits, refuse
from tampu.text.schema_shape import closed, without_endless
from tampu.text.tokenizer import Tokenizer

T = TypeVar("T")

# One blank after separators or none. Free white space lets a weak model write blanks for ever. Escapes are those that
# JSON cannot do without: with \u, a name that is taken could be written a second time in another spelling.
JSON_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": 'nrbtf\\"',
}
_LOCATING_SECONDS = 1.0  # spent on finding the place of an error that the library reports without one
_CACHED_TEXTS = 4096
_CACHED_TEXT_BYTES = 256


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """What one grammar may cost."""

    schema: SchemaLimits = field(default_factory=SchemaLimits)
    compile_seconds: float = 5.0
    cache_bytes: int = 64 << 20
    max_lexer_states: int = 20_000  # about 2 kB each
    max_grammar_size: int = 200_000
    max_items_in_row: int = 2_000
    step_max_items: int = 50_000
    step_lexer_fuel: int = 200_000
    initial_lexer_fuel: int = 1_000_000


class _SpelledTokens:
    """What `llguidance` asks of a tokenizer.

    Where a grammar leaves one way to go on, its text is tokenized for the mask: the same short texts again and again,
    which are therefore remembered.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = range(tokenizer.vocab_size)
        self._encode = tokenizer.encode
        self._encode_cached = lru_cache(_CACHED_TEXTS)(tokenizer.encode)
        self.eos_token_id = tokenizer.eos_token_ids[0]
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = [i for i in ids if tokenizer.is_special(i)]
        self.tokens = [
            (tokenizer.special_name(i) or f"<|no token {i}|>").encode()
            if tokenizer.is_special(i)
            else tokenizer.token_bytes(i)
            for i in ids
        ]

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._encode_cached(text) if len(text) <= _CACHED_TEXT_BYTES else self._encode(text)


class Grammar:
    """A compiled grammar. Cheap to start constraints from; safe to share between requests of any thread."""

    def __init__(self, matcher: Any, num_mask_bytes: int, cost_bytes: int) -> None:
        self._matcher = matcher
        self._num_mask_bytes = num_mask_bytes
        self.cost_bytes = cost_bytes
        self.has_failed = False  # it ran into a limit of the matcher while in use

    def new_constraint(self, max_tokens: int) -> TokenConstraint:
        """A fresh constraint, for one request. `max_tokens` changes nothing here: text may be cut."""
        return self.new_matching()

    def new_matching(self) -> GrammarMatching:
        """The same, as the type that also tells where in the grammar it is."""
        return GrammarMatching(self, self._matcher.deep_copy(), self._num_mask_bytes)


class GrammarMatching:
    """One request's way through a grammar: a `TokenConstraint`.

    End-of-sequence tokens are allowed only where the grammar may end. Should a limit of the matcher be hit, nothing is
    allowed any more, which the engine answers with an error for this request.
    """

    def __init__(self, grammar: Grammar, matcher: Any, num_mask_bytes: int) -> None:
        self._grammar = grammar
        self._behind = matcher
        self._num_mask_bytes = num_mask_bytes
        self._pending: list[int] = []  # accepted, not known to the matcher yet
        self._mask = bytearray(num_mask_bytes)  # never resized: the matcher writes to its address
        self._mask_address = ctypes.addressof(ctypes.c_char.from_buffer(self._mask))

    def next_mask(self) -> TokenMask:
        """See TokenConstraint. The buffer is written over by the next call."""
        matcher = self._matcher
        mask: TokenMask = self._mask
        if matcher.is_stopped():
            mask = matcher.compute_bitmask()[: self._num_mask_bytes]  # makes a new one, and still answers: with the end
        else:
            matcher.unsafe_compute_mask_ptr(self._mask_address, self._num_mask_bytes)
        if matcher.is_error():
            self._grammar.has_failed = True
            return bytes(self._num_mask_bytes)
        return mask

    def accept(self, token_id: int) -> None:
        """See TokenConstraint. Only noted: the work is done when something is asked."""
        self._pending.append(token_id)

    @property
    def _matcher(self) -> Any:
        """The matcher, advanced by all tokens."""
        for token_id in self._pending:
            self._behind.consume_token(token_id)
        self._pending.clear()
        return self._behind

    def copy(self) -> GrammarMatching:
        """Another one at the same place, to try things with."""
        return GrammarMatching(self._grammar, self._matcher.deep_copy(), self._num_mask_bytes)

    def accept_tokens(self, token_ids: Sequence[int]) -> bool:
        """Advance by several tokens; False when the grammar does not allow them."""
        return bool(self._matcher.try_consume_tokens(list(token_ids)) == len(token_ids))

    @property
    def may_end(self) -> bool:
        """True when the grammar is satisfied."""
        return bool(self._matcher.is_accepting())

    @property
    def is_complete(self) -> bool:
        """True when the grammar is satisfied and allows nothing more."""
        return bool(self._matcher.is_stopped())


class GrammarCompiler:
    """Makes grammars for one model's vocabulary and keeps the latest ones.

    `eos_token_ids` are the tokens that may end a constrained answer: those the engine stops at. The first use builds
    the vocabulary's token tree (about half a second for 128,000 tokens); `warm_up` does it ahead.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, eos_token_ids: Sequence[int] = (), limits: GrammarLimits | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.limits = limits or GrammarLimits()
        self._eos_token_ids = sorted(set(eos_token_ids) or set(tokenizer.eos_token_ids))
        self._num_mask_bytes = (tokenizer.vocab_size + 31) // 32 * 4  # the library writes whole words
        self._lock = threading.Lock()
        self._ll_tokenizer: Any = None
        self._cache: OrderedDict[str, Grammar] = OrderedDict()
        self.cached_bytes = 0  # an estimate
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tampu-grammar")

    async def compile(self, make: Callable[[GrammarCompiler], T]) -> T:
        """Run `make` in a thread, for example `lambda c: c.json_schema(schema)`.

        Raises UnsupportedSchemaError, also when it takes longer than the limit.
        """
        loop = asyncio.get_running_loop()
        started = asyncio.Event()

        def run() -> T:
            self.warm_up()  # once, and not the schema's fault
            loop.call_soon_threadsafe(started.set)
            return make(self)

        job = loop.run_in_executor(self._threads, run)
        job.add_done_callback(lambda _: started.set())
        await started.wait()  # time in the queue does not count
        try:
            return await asyncio.wait_for(asyncio.shield(job), self.limits.compile_seconds)
        except TimeoutError:
            job.add_done_callback(lambda done: done.cancelled() or done.exception())  # its outcome is of no interest
            refuse("", "", f"compiling the schema takes longer than {self.limits.compile_seconds:g} s")

    def close(self) -> None:
        """Stop the threads; running compilations end on their own."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def warm_up(self) -> None:
        """Build the token tree. Thread-safe, done once."""
        with self._lock:
            if self._ll_tokenizer is None:
                wrapper = TokenizerWrapper(_SpelledTokens(self.tokenizer))
                self._ll_tokenizer = LLTokenizer(
                    wrapper,
                    n_vocab=self.tokenizer.vocab_size,
                    eos_token=list(self._eos_token_ids),
                    slices=LLTokenizer.json_slices(),  # precomputed masks of common string contents
                )

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Any) -> Grammar:
        """A value that validates against the schema. Raises UnsupportedSchemaError naming keyword and path."""
        return self.cached(
            "schema " + dumped(schema, ""), lambda: self.from_normalized(*normalized(schema, self.limits.schema))
        )

    def from_normalized(self, root: Schema, schemas: NormalizedSchemas) -> Grammar:
        """A grammar of one normalized schema. Raises UnsupportedSchemaError."""
        root, definitions = checked(self, root, schemas)
        return self._compiled(json_grammar(root, definitions))

    def cached(self, key: str, make: Callable[[], Grammar]) -> Grammar:
        """The grammar kept under a key, else the one that `make` makes. Thread-safe."""
        with self._lock:
            grammar = self._cache.get(key)
            if grammar is not None and not grammar.has_failed:
                self._cache.move_to_end(key)
                return grammar
        grammar = make()
        with self._lock:
            replaced = self._cache.pop(key, None)
            self.cached_bytes += grammar.cost_bytes - (replaced.cost_bytes if replaced is not None else 0)
            self._cache[key] = grammar
            while self.cached_bytes > self.limits.cache_bytes and len(self._cache) > 1:
                _, oldest = self._cache.popitem(last=False)
                self.cached_bytes -= oldest.cost_bytes
        return grammar

    def from_lark(self, lark: str) -> Grammar:
        """A grammar in the library's own notation; made by us, never by a user. Raises UnsupportedSchemaError."""
        return self._compiled(json.dumps({"grammars": [{"lark_grammar": lark}]}))

    def terminal(self, text: str) -> str:
        """Literal text in that notation; tags that the vocabulary has as special tokens become those."""
        parts = []
        for part in re.split(r"(<[^<>\s]+>)", text):
            if part in self.tokenizer.special_names:
                parts.append(f"<[{self.tokenizer.special_id(part)}]>")
            elif part:
                parts.append(json.dumps(part))
        return " ".join(parts)

    @cached_property
    def end_mask(self) -> bytes:
        """The mask that allows nothing but the end of the answer."""
        mask = bytearray(self._num_mask_bytes)
        for token_id in self._eos_token_ids:
            mask[token_id // 8] |= 1 << (token_id % 8)
        return bytes(mask)

    @cached_property
    def byte_token_ids(self) -> dict[int, int]:
        """The token that spells each single byte, for the bytes that have one."""
        spelled = ((self.tokenizer.token_bytes(i), i) for i in range(self.tokenizer.num_tokens))
        return {data[0]: token_id for data, token_id in spelled if len(data) == 1}

    def _compiled(self, grammar: str) -> Grammar:
        matcher = self.matcher(grammar)
        if matcher.is_error():
            refuse("", "", first_line(matcher.get_error()))
        # The library does not tell what a grammar weighs: its text, and the lexer states that use will add.
        cost_bytes = 40 * len(grammar) + (1 << 18)
        return Grammar(matcher, self._num_mask_bytes, cost_bytes)

    def matcher(self, grammar: str) -> Any:
        """A matcher of the library; it may be in its error state."""
        self.warm_up()
        limits = self.limits
        return LLMatcher(
            self._ll_tokenizer,
            grammar,
            log_level=0,
            limits=LLParserLimits(
                max_items_in_row=limits.max_items_in_row,
                initial_lexer_fuel=limits.initial_lexer_fuel,
                step_lexer_fuel=limits.step_lexer_fuel,
                step_max_items=limits.step_max_items,
                max_lexer_states=limits.max_lexer_states,
                max_grammar_size=limits.max_grammar_size,
                verbose_errors=False,
            ),
        )


def dumped(schema: Any, path: str) -> str:
    """The schema as JSON text, in the order it was given. Raises UnsupportedSchemaError when it is not JSON."""
    try:
        return json.dumps(schema, allow_nan=False)
    except RecursionError:
        refuse("", path, "the schema is nested too deeply")
    except (TypeError, ValueError) as error:
        refuse("", path, f"the schema is not JSON: {error}")


def normalized(schema: Any, limits: SchemaLimits) -> tuple[Schema, NormalizedSchemas]:
    """One schema in our dialect, with its definitions."""
    schemas = NormalizedSchemas(limits)
    return schemas.add(schema), schemas


def json_grammar(root: Schema, definitions: dict[str, Schema]) -> str:
    """The library's grammar text for a normalized schema."""
    return json.dumps({"grammars": [{"json_schema": styled(root, definitions)}]})


def styled(root: Schema, definitions: dict[str, Schema]) -> dict[str, Any]:
    """A normalized schema as a document of its own, with the style its JSON is written in."""
    document: dict[str, Any] = {"not": {}} if root is False else {} if root is True else dict(root)
    return document | {"$defs": definitions, "x-guidance": JSON_STYLE}


def checked(compiler: GrammarCompiler, root: Schema, schemas: NormalizedSchemas) -> tuple[Schema, dict[str, Schema]]:
    """Schemas that are known to compile, narrowed where that is safe. Raises UnsupportedSchemaError."""
    root, definitions = without_endless(root, schemas.definitions)
    if root is False:
        refuse("", "", "no value satisfies the schema")
    matcher = compiler.matcher(json_grammar(root, definitions))
    if matcher.is_error():  # a least number of properties can be counted only in objects that have no others
        counted = closed(root, definitions, counted_only=True)
        if counted is None or compiler.matcher(json_grammar(*counted)).is_error():
            _locate(compiler, schemas, matcher.get_error())
        else:
            root, definitions = counted
    narrowed = closed(root, definitions)
    if narrowed is not None and not compiler.matcher(json_grammar(*narrowed)).is_error():
        return narrowed
    return root, definitions


def _locate(compiler: GrammarCompiler, schemas: NormalizedSchemas, message: str) -> NoReturn:
    """Refuse with the innermost schema that does not compile on its own."""
    deadline = time.monotonic() + _LOCATING_SECONDS
    for path, node in schemas.paths:
        if time.monotonic() > deadline:
            break
        if isinstance(node, dict):
            matcher = compiler.matcher(json_grammar(node, schemas.definitions))
            if matcher.is_error():
                _refuse_message(matcher.get_error(), node, path)
    _refuse_message(message, {}, "")


def _refuse_message(message: str, node: dict[str, Any], path: str) -> NoReturn:
    """Refuse with the keyword that a message of the library is about, in our words where they help more."""
    if "recursion limit" in message:  # what is not a branch is taken apart before (`NormalizedSchemas`)
        refuse("", path, "branches within branches are nested too deeply; move the inner ones into '$defs'")
    for part, keyword, reason in _MESSAGES:
        if part in message and (not node or keyword in node):
            refuse(keyword, path, reason or first_line(message))
    refuse(next(iter(node), ""), path, first_line(message))


_MESSAGES = (
    ("oneOf", "oneOf", "its branches cannot be shown to exclude each other; give each its own 'const', or use 'anyOf'"),
    ("patternProperty", "patternProperties", "patterns that may match the same name cannot be enforced"),
    ("maxProperties", "maxProperties", "cannot be enforced beside properties that are not required; require them"),
    (
        "maxProperties",
        "minProperties",
        "cannot be enforced beside properties that are not required and unlisted ones; require some, or set "
        "'additionalProperties' to false",
    ),
    ("multipleOf", "multipleOf", ""),
    ("minLength", "minLength", ""),
    ("minItems", "minItems", ""),
    ("minimum", "minimum", ""),
    ("required", "required", ""),
    ("anyOf", "anyOf", ""),
    ("regex", "pattern", "the expression is too large to enforce"),
)


def first_line(message: str) -> str:
    """The sentence of a message of the library, without its details."""
    return message.strip().splitlines()[0][:300] if message.strip() else "the schema cannot be enforced"
