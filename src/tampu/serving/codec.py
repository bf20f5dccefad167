"""Text in and out of one model: its chat template and its tokenizer behind the port that the generator uses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tampu.core.chat import Message
from tampu.serving.ports import StopMatcher, TokenDecoder
from tampu.serving.requests import GenerateRequest
from tampu.text.chat_template import ChatTemplate
from tampu.text.detokenizer import Detokenizer
from tampu.text.history import canonical_messages
from tampu.text.segments import Segment, Special, Text
from tampu.text.stop_strings import StopStringMatcher
from tampu.text.tokenizer import Tokenizer


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
