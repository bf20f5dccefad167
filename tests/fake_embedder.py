"""An embedding model without weights: vectors are unit vectors that the length of the text points out."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tampu.core.errors import ContextLengthError
from tampu.serving.embedder import EmbeddingCard, Embeddings

DIMENSIONS = 8
MAX_TOKENS = 512


class FakeEmbedder:
    """A word is a token."""

    card = EmbeddingCard(weights_name="fake-embedder", dimensions=DIMENSIONS, max_tokens=MAX_TOKENS)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        counts = [len(text.split()) for text in texts]
        if max(counts) > MAX_TOKENS:
            raise ContextLengthError(num_prompt_tokens=max(counts), max_tokens=0, max_model_len=MAX_TOKENS)
        return Embeddings(tuple(map(vector, texts)), sum(counts))


def vector(text: str) -> bytes:
    """The little-endian float32 vector of a text."""
    numbers = [0.0] * DIMENSIONS
    numbers[len(text) % DIMENSIONS] = 1.0
    return struct.pack(f"<{DIMENSIONS}f", *numbers)
