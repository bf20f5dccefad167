"""Token ids to text, piece by piece, in linear time. Knows bytes and characters, not requests."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from tampu.text.tokenizer import Tokenizer


class Detokenizer:
    """Decodes one answer. Only whole characters come out; an unfinished one waits for its remaining bytes.

    Special tokens are left out, except those named in `shown`, which come out by their spelling (the tool-call
    parser wants to see `<|python_tag|>`). The pieces joined equal the text of all tokens decoded at once.
    """

    def __init__(self, tokenizer: Tokenizer, *, shown: Iterable[str] = ()) -> None:
        self._tokenizer = tokenizer
        wanted = set(shown) & tokenizer.special_names
        self._shown = {tokenizer.special_id(name): name.encode() for name in wanted}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_ids: Iterable[int]) -> str:
        """The text that became certain with these tokens; may be empty. Invalid UTF-8 becomes U+FFFD."""
        spell, shown = self._tokenizer.token_bytes, self._shown
        return self._decoder.decode(b"".join(spell(i) or shown.get(i, b"") for i in token_ids))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed, else nothing. Call once, at the end."""
        return self._decoder.decode(b"", final=True)
