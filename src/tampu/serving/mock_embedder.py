"""Embeddings without a model, for other people's tests: equal texts have equal vectors, and that is all they mean."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence

from tampu.serving.embedder import EmbeddingCard, Embeddings

_DIMENSIONS = 384  # as the hosted model of this name


class MockEmbedder:
    """Unit vectors drawn from a hash of the text. A word is a token."""

    card = EmbeddingCard(weights_name="mock (no model)", dimensions=_DIMENSIONS, max_tokens=512)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """One vector per text."""
        num_tokens = sum(max(1, len(text.split())) for text in texts)
        return Embeddings(tuple(map(_vector, texts)), num_tokens)


def _vector(text: str) -> bytes:
    drawn = hashlib.shake_128(text.encode()).digest(2 * _DIMENSIONS)
    numbers = [number / 32768 for number in struct.unpack(f"<{_DIMENSIONS}h", drawn)]
    length = math.sqrt(math.fsum(number * number for number in numbers)) or 1.0
    return struct.pack(f"<{_DIMENSIONS}f", *(number / length for number in numbers))
