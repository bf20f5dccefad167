"""What the routes need of a text embedding model. Vectors cross this line as bytes: HTTP sees no arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

PUBLIC_EMBEDDING_NAME = "@cf/baai/bge-small-en-v1.5"  # the hosted embedding model of the bundled model's size
EMBEDDING_FAMILY = "@cf/baai/bge-"


@dataclass(frozen=True, slots=True)
class EmbeddingCard:
    """Facts about the embedding model that is served."""

    weights_name: str  # the model's own name, for example "all-MiniLM-L6-v2"
    dimensions: int  # components of a vector
    max_tokens: int  # longest text, in tokens
    name: str = PUBLIC_EMBEDDING_NAME
    file: str = ""
    num_parameters: int = 0
    pooling: str = "mean"
    created_at: int = 0  # epoch seconds


@dataclass(frozen=True, slots=True)
class Embeddings:
    """`vectors[i]` is text i as little-endian float32, `dimensions` components, of unit length."""

    vectors: tuple[bytes, ...]
    prompt_tokens: int  # all texts together, special tokens included


class TextEmbedder(Protocol):
    """Texts to vectors, off the event loop."""

    @property
    def card(self) -> EmbeddingCard:
        """What is served."""

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """One vector per text, in order. A text longer than `card.max_tokens` is cut, as sentence-transformers does.

        Raises:
            InvalidRequestError: for no texts or too many of them.
            OverloadedError: when too many callers wait.
        """
