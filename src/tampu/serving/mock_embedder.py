"""Embeddings without a model, for other people's tests: equal texts have equal vectors, and that is all they mean."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Collection, Sequence

from tampu.serving.embedder import EmbeddingCard, Embeddings
from tampu.serving.mock_script import Cue, directed

_DIMENSIONS = 384  # as the hosted model of this name
_KEYS = frozenset({"error", "status", "delay_ms"})  # the others are about tokens


class MockEmbedder:
    """Unit vectors drawn from a hash of the text. A word is a token. `error_codes` are the ones that the wire knows."""

    def __init__(self, error_codes: Collection[int]) -> None:
        self._error_codes = error_codes

    card = EmbeddingCard(weights_name="mock (no model)", dimensions=_DIMENSIONS, max_tokens=512)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """One vector per text, or the fault that the request asks for."""
        cue = Cue(**directed([("input", text) for text in texts], self._error_codes, _KEYS))
        await cue.begin()
        num_tokens = sum(max(1, len(text.split())) for text in texts)
        return Embeddings(tuple(map(_vector, texts)), num_tokens)


def _vector(text: str) -> bytes:
    drawn = hashlib.shake_128(text.encode()).digest(2 * _DIMENSIONS)
    numbers = [number / 32768 for number in struct.unpack(f"<{_DIMENSIONS}h", drawn)]
    length = math.sqrt(math.fsum(number * number for number in numbers)) or 1.0
    return struct.pack(f"<{_DIMENSIONS}f", *(number / length for number in numbers))
