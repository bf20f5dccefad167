"""A rendered prompt before it is tokenized: special tokens and plain text, kept apart.

Text is never searched for special tokens, so nothing a user writes can become one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Special:
    """One special token, by its spelling in the vocabulary, for example "<|eot_id|>"."""

    name: str


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text. Neighbouring texts are joined before they are encoded."""

    text: str


Segment = Special | Text
