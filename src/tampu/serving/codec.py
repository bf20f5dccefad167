"""Text in and out of one model: its chat template and its tokenizer behind the port that the generator uses."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tampu.core.chat import Message, ToolSpec
from tampu.core.errors import UnsupportedSchemaError
from tampu.serving.ports import ConstraintSource, StopMatcher, TokenDecoder
from tampu.serving.requests import GenerateRequest, callable_tools
from tampu.text.chat_template import ChatTemplate
from tampu.text.detokenizer import Detokenizer
from tampu.text.history import canonical_messages
from tampu.text.segments import Segment, Special, Text
from tampu.text.stop_strings import StopStringMatcher
from tampu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tampu.text.grammar import GrammarCompiler


class ChatCodec:
    """Renders and encodes prompts, decodes answers. Immutable; used from the event loop and the tokenising thread."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.vocab_size = tokenizer.vocab_size
        known = tokenizer.special_names
        end_ids = [tokenizer.special_id(name) for name in template.end_of_turn_names if name in known]
        self.eos_token_ids = tuple(dict.fromkeys((*tokenizer.eos_token_ids, *end_ids)))
        names = sorted(tokenizer.special_names, key=len, reverse=True)
        self._compiler: GrammarCompiler | None = None  # made when first needed: most servers never compile anything
        self._special = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def encode(self, request: GenerateRequest) -> tuple[int, ...]:
        """The prompt of a request, rendered and tokenised.

        Only a raw prompt may spell special tokens: it has to bring the model's own format.
        """
        if request.is_raw:
            segments = self._raw_segments(request.prompt or "")
        else:
            messages = request.messages
            if messages is None:
                messages = (Message("user", request.prompt or ""),)
            tools = request.tools if request.tool_choice.mode != "none" else ()
            segments = self._template.render(canonical_messages(messages), tools)
        return tuple(self._tokenizer.encode_segments(segments))

    def _raw_segments(self, prompt: str) -> list[Segment]:
        if self._special is None:
            return [Text(prompt)]
        pieces = self._special.split(prompt)  # text, special, text, special, ..., text
        segments: list[Segment] = []
        for index, piece in enumerate(pieces):
            if index % 2:
                segments.append(Special(piece))
            elif piece:
                segments.append(Text(piece))
        return segments

    async def constraint(self, request: GenerateRequest) -> ConstraintSource | None:
        """What the request demands of the answer's form; None = nothing.

        A demanded call (`tool_choice` required or named) is enforced. With `auto` the model is free until it begins a
        call; when the schema of a tool cannot be enforced, such calls are only parsed, as a demand could not be met.
        Raises UnsupportedSchemaError.
        """
        tools = callable_tools(request)
        is_demanded = request.tool_choice.mode in ("required", "named")
        if not tools and request.response_format is None:
            return None
        if self._compiler is None:
            from tampu.text.grammar import GrammarCompiler

            self._compiler = GrammarCompiler(self._tokenizer, eos_token_ids=self.eos_token_ids)
        make = _grammar_maker(request, tools, self._template.kind)
        try:
            return await self._compiler.compile(make)
        except UnsupportedSchemaError:
            if is_demanded or request.response_format is not None:
                raise
            return None

    def close(self) -> None:
        """Free the threads that compile. Idempotent."""
        if self._compiler is not None:
            self._compiler.close()

    def decoder(self) -> TokenDecoder:
        """A fresh decoder of plain text."""
        return Detokenizer(self._tokenizer)

    def tool_decoder(self) -> TokenDecoder:
        """A fresh decoder that also shows the special tokens which mark tool calls."""
        return Detokenizer(self._tokenizer, shown=self._template.shown_special_names)

    def stop_matcher(self, stops: Sequence[str]) -> StopMatcher:
        """A fresh matcher."""
        return StopStringMatcher(stops)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; empty for special tokens."""
        return self._tokenizer.token_bytes(token_id)


def _grammar_maker(
    request: GenerateRequest, tools: Sequence[ToolSpec], kind: str
) -> Callable[[GrammarCompiler], ConstraintSource]:
    """What to compile for a request, to be run in the compiler's thread."""
    from tampu.text.call_grammar import answer_or_calls, auto_calls, forced_calls

    response_format = request.response_format
    schema = {"type": "object"} if response_format is None or response_format.schema is None else response_format.schema
    is_demanded = request.tool_choice.mode in ("required", "named")
    parallel = request.parallel_tool_calls and request.tool_choice.mode != "named"
    if not tools:
        return lambda compiler: compiler.json_schema(schema)
    if is_demanded:
        return lambda compiler: forced_calls(compiler, tools, kind=kind, parallel=parallel)
    if response_format is not None:
        return lambda compiler: answer_or_calls(compiler, schema, tools, kind=kind, parallel=parallel)
    return lambda compiler: auto_calls(compiler, tools, kind=kind, parallel=parallel)
