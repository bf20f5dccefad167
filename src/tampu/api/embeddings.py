"""Embeddings on both protocols: OpenAI's list, and the run endpoint's `{shape, data}`. Vectors arrive as bytes."""

from __future__ import annotations

import base64
import sys
from array import array
from dataclasses import dataclass
from typing import Any

from tampu.api.context import AppContext
from tampu.api.openai_parameters import EMBEDDING_PARAMETERS
from tampu.api.parameter_tables import read_parameters, required
from tampu.core.errors import InvalidRequestError
from tampu.serving.embedder import EMBEDDING_FAMILY, EmbeddingCard, Embeddings, TextEmbedder

MAX_TEXTS = 2048  # OpenAI's limit
_MAX_NATIVE_TEXTS_STRICT = 100


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """What a body asks for."""

    texts: tuple[str, ...]
    is_base64: bool = False
    ignored: tuple[str, ...] = ()


def embedder_for(context: AppContext, model: str) -> TextEmbedder | None:
    """The embedding model when `model` means it: by its name, or (default mode) by any name of the hosted family.

    The sizes of the family differ, so strict mode takes the one name whose vectors have the right length.
    """
    embedder = context.services.embeddings
    if embedder is None:
        return None
    is_of_family = not context.config.is_strict and model.startswith(EMBEDDING_FAMILY)
    return embedder if is_of_family or model == embedder.card.name else None


def parse_embedding(body: Any, card: EmbeddingCard, *, is_strict: bool) -> EmbeddingCall:
    """OpenAI's embedding body.

    Raises:
        InvalidRequestError: naming the member at fault.
    """
    values, ignored = read_parameters(EMBEDDING_PARAMETERS, body)
    dimensions = values.get("dimensions", card.dimensions)
    if dimensions != card.dimensions:
        if is_strict:
            sentence = f"'dimensions' must be {card.dimensions} with this model, not {dimensions}"
            raise InvalidRequestError("dimensions", sentence)
        ignored = (*ignored, "dimensions")
    texts = _texts(required(values, "input"), "input")
    return EmbeddingCall(texts, values.get("encoding_format") == "base64", ignored)


def parse_native_embedding(body: Any, card: EmbeddingCard, *, is_strict: bool) -> EmbeddingCall:
    """The run endpoint's body: `{text: "..." | [...], pooling?}`.

    Raises:
        InvalidRequestError: naming the member at fault.
    """
    if not isinstance(body, dict) or body.get("text") is None:
        sentence = "required properties at '/' are 'text'"
        raise InvalidRequestError("text", sentence, hint='Send {"text": "..."} or {"text": ["...", "..."]}.')
    pooling = body.get("pooling")
    if pooling not in (None, card.pooling):
        raise InvalidRequestError(
            "pooling", f"'pooling' must be {card.pooling!r} with this model", hint="Leave it out."
        )
    texts = _texts(body["text"], "text")
    if is_strict and len(texts) > _MAX_NATIVE_TEXTS_STRICT:
        raise InvalidRequestError("text", f"Length of '/text' must be <= {_MAX_NATIVE_TEXTS_STRICT}")
    return EmbeddingCall(texts)


def embedding_body(result: Embeddings, model: str, *, is_base64: bool) -> dict[str, Any]:
    """OpenAI's list of embeddings."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if is_base64 else _floats(vector)}
            for index, vector in enumerate(result.vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
    }


def native_embedding_result(result: Embeddings, card: EmbeddingCard) -> dict[str, Any]:
    """The run endpoint's `result`."""
    return {
        "shape": [len(result.vectors), card.dimensions],
        "data": [_floats(vector) for vector in result.vectors],
        "pooling": card.pooling,
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": 0,
            "total_tokens": result.prompt_tokens,
        },
    }


def _texts(value: Any, field: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise InvalidRequestError(field, f"'{field}' must be a string or an array of strings, not empty")
    if len(texts) > MAX_TEXTS:
        raise InvalidRequestError(field, f"'{field}' must hold at most {MAX_TEXTS} texts, not {len(texts)}")
    for index, text in enumerate(texts):
        where = field if isinstance(value, str) else f"{field}/{index}"
        if isinstance(text, int | list):
            sentence = f"'{field}' must be text: token ids of another tokenizer would mean something else here"
            raise InvalidRequestError(
                where, sentence, hint="Send the text itself (in LangChain: check_embedding_ctx_length=False)."
            )
        if not isinstance(text, str) or not text:
            raise InvalidRequestError(where, f"'{where}' must be a text of at least one character")
    return tuple(texts)


def _floats(vector: bytes) -> list[float]:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
