"""The catalogue: which models there are, their schemas, authors and tasks. Pure functions; routes are elsewhere.

The items say which weights really answer: a stand-in is never passed off as the model whose name it answers to.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tampu.api.errors import ApiError
from tampu.api.run_schema import INPUT_SCHEMA, OUTPUT_SCHEMA
from tampu.serving.embedder import EmbeddingCard
from tampu.serving.model_card import ModelCard

DEFAULT_PER_PAGE = 20
MAX_PER_PAGE = 1000

_PUBLIC_ID = "872d9af1-5ff8-4e84-aed1-ab3caf909436"  # the hosted catalogue's id of the page's model
_DESCRIPTION = (
    "[Fast version] The Meta Llama 3.1 collection of multilingual large language models (LLMs) is a collection of "
    "pretrained and instruction tuned generative models. The Llama 3.1 instruction tuned text only models are "
    "optimized for multilingual dialogue use cases and outperform many of the available open source and closed chat "
    "models on common industry benchmarks."
)
_TERMS = "https://github.com/meta-llama/llama-models/blob/main/models/llama3_1/LICENSE"
_TEXT_GENERATION = {
    "id": "c329a1f9-323d-4e91-b2aa-582dd4188d34",
    "name": "Text Generation",
    "description": "Family of generative text models, such as large language models (LLM), that can be adapted for a "
    "variety of natural language tasks.",
}
_TEXT_EMBEDDINGS = {
    "id": "0137cdcf-162a-4108-94f2-1ca59e8c65ee",
    "name": "Text Embeddings",
    "description": "Feature extraction models transform raw data into numerical features that can be processed while "
    "preserving the information in the original dataset.",
}
_SOURCE = 1  # models that the service hosts itself

EMBEDDING_INPUT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {
            "oneOf": [
                {"type": "string", "minLength": 1, "description": "The text to embed"},
                {
                    "type": "array",
                    "description": "Batch of texts to embed",
                    "items": {"type": "string", "minLength": 1, "description": "The text to embed"},
                    "maxItems": 100,
                },
            ]
        },
        "pooling": {"type": "string", "enum": ["mean", "cls"], "description": "How token vectors become one vector."},
    },
    "required": ["text"],
}
EMBEDDING_OUTPUT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "contentType": "application/json",
    "properties": {
        "shape": {"type": "array", "items": {"type": "number"}},
        "data": {
            "type": "array",
            "description": "One vector for each text",
            "items": {"type": "array", "items": {"type": "number"}},
        },
        "pooling": {"type": "string", "enum": ["mean", "cls"], "description": "The pooling that was used."},
    },
}


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model of the catalogue. `item` is its public form."""

    item: Mapping[str, Any]
    author: str
    aliases: tuple[str, ...]
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any]

    def is_named(self, name: str) -> bool:
        """True when `name` means this model."""
        return name == self.item["name"] or name in self.aliases


def build_catalogue(model: ModelCard, embedding: EmbeddingCard | None) -> tuple[CatalogueEntry, ...]:
    """The models this server answers for."""
    entries = [_text_generation(model)]
    if embedding is not None:
        entries.append(_text_embeddings(embedding))
    return tuple(entries)


def search_models(entries: Sequence[CatalogueEntry], query: Mapping[str, str]) -> dict[str, Any]:
    """The v4 envelope of a search. A page beyond the end is empty: clients ask until they see one.

    Raises:
        ApiError: 8001 for a filter with a value that means nothing.
    """
    if query.get("format"):
        raise ApiError(
            8001, "the parameter 'format' is not supported", param="format", hint="Leave it out for the usual items."
        )
    source = _integer(query, "source", default=_SOURCE, low=0, high=2**31 - 1)
    found = [dict(entry.item) for entry in entries if source == _SOURCE and _matches(entry, query)]
    return _page(found, query)


def find_schema(entries: Sequence[CatalogueEntry], query: Mapping[str, str]) -> dict[str, Any]:
    """`{input, output}` of the model named in the query.

    Raises:
        ApiError: 8001 without a model, 5007 for an unknown one.
    """
    name = query.get("model", "")
    if not name:
        raise ApiError(8001, "the parameter 'model' is missing", param="model", hint="Add ?model=<name>.")
    for entry in entries:
        if entry.is_named(name):
            return v4_envelope({"input": entry.input_schema, "output": entry.output_schema})
    raise ApiError(5007, name, param="model", hint="The names are listed by models/search.")


def search_authors(entries: Sequence[CatalogueEntry], query: Mapping[str, str]) -> dict[str, Any]:
    """Who made the models."""
    names = sorted({entry.author for entry in entries})
    authors = [{"id": _id(f"author/{name}"), "name": name, "description": f"Models of {name}"} for name in names]
    return _page(_searched(authors, query), query)


def search_tasks(entries: Sequence[CatalogueEntry], query: Mapping[str, str]) -> dict[str, Any]:
    """What the models can do."""
    tasks = {entry.item["task"]["id"]: dict(entry.item["task"]) for entry in entries}
    return _page(_searched(list(tasks.values()), query), query)


def v4_envelope(result: Any) -> dict[str, Any]:
    """The envelope of a success."""
    return {"result": result, "success": True, "errors": [], "messages": []}


def _text_generation(card: ModelCard) -> CatalogueEntry:
    properties = [
        {"property_id": "context_window", "value": str(card.max_model_len)},
        {"property_id": "terms", "value": _TERMS},
        *_weights(card.weights_name, card.file, card.num_parameters),
        {"property_id": "tampu_quantization", "value": card.quantization},
        {"property_id": "tampu_model_context_window", "value": _number(card.model_context_len)},
        {"property_id": "tampu_kv_cache_tokens", "value": _number(card.kv_capacity_tokens)},
        {"property_id": "tampu_stand_in", "value": str(card.is_stand_in).lower()},
    ]
    description = _DESCRIPTION
    if card.is_stand_in:
        description = f"On this server {card.weights_name} answers under this name, not Llama 3.1 8B."
    item = _item(_PUBLIC_ID, card.name, description, _TEXT_GENERATION, properties, card.created_at)
    return CatalogueEntry(item, "meta", card.aliases, INPUT_SCHEMA, OUTPUT_SCHEMA)


def _text_embeddings(card: EmbeddingCard) -> CatalogueEntry:
    properties = [
        {"property_id": "context_window", "value": str(card.max_tokens)},
        {"property_id": "output_dimensions", "value": str(card.dimensions)},
        *_weights(card.weights_name, card.file, card.num_parameters),
    ]
    description = f"Text embeddings with {card.dimensions} dimensions; on this server {card.weights_name} answers."
    item = _item(_id(card.name), card.name, description, _TEXT_EMBEDDINGS, properties, card.created_at)
    author = card.name.split("/")[1] if card.name.count("/") == 2 else "unknown"
    return CatalogueEntry(item, author, (), EMBEDDING_INPUT_SCHEMA, EMBEDDING_OUTPUT_SCHEMA)


def _item(
    item_id: str,
    name: str,
    description: str,
    task: Mapping[str, Any],
    properties: list[dict[str, str]],
    created_at: int,
) -> dict[str, Any]:
    return {
        "id": item_id,
        "source": _SOURCE,
        "name": name,
        "description": description,
        "task": dict(task),
        "created_at": datetime.fromtimestamp(created_at, UTC).strftime("%Y-%m-%d %H:%M:%S.000"),
        "tags": [],
        "properties": [each for each in properties if each["value"]],
    }


def _weights(weights: str, file: str, num_parameters: int) -> list[dict[str, str]]:
    return [
        {"property_id": "tampu_weights", "value": weights},
        {"property_id": "tampu_file", "value": file.rsplit("/", 1)[-1]},
        {"property_id": "tampu_parameters", "value": _number(num_parameters)},
    ]


def _number(value: int) -> str:
    """Zero means unknown, and a property without a value is left out."""
    return str(value) if value else ""


def _matches(entry: CatalogueEntry, query: Mapping[str, str]) -> bool:
    item = entry.item
    words = query.get("search", "").lower()
    task = query.get("task", "").lower()
    author = query.get("author", "").lower()
    if words and words not in f"{item['name']}\n{item['description']}".lower():
        return False
    if task and task not in (item["task"]["name"].lower(), item["task"]["id"]):
        return False
    return not author or author == entry.author


def _searched(items: list[dict[str, Any]], query: Mapping[str, str]) -> list[dict[str, Any]]:
    words = query.get("search", "").lower()
    return [item for item in items if words in item["name"].lower()]


def _page(items: list[Any], query: Mapping[str, str]) -> dict[str, Any]:
    page = _integer(query, "page", default=1, low=1, high=2**31 - 1)
    per_page = _integer(query, "per_page", default=DEFAULT_PER_PAGE, low=1, high=MAX_PER_PAGE)
    shown = items[(page - 1) * per_page : page * per_page]
    info = {"page": page, "per_page": per_page, "count": len(shown), "total_count": len(items)}
    return {**v4_envelope(shown), "result_info": {**info, "total_pages": -(-len(items) // per_page)}}


def _integer(query: Mapping[str, str], name: str, *, default: int, low: int, high: int) -> int:
    text = query.get(name, "")
    if not text:
        return default
    digits = text.removesuffix(".0")  # SDKs type some of these as floats
    if digits.isascii() and digits.isdigit() and len(digits) <= 10 and low <= int(digits) <= high:
        return int(digits)
    raise ApiError(8001, f"'{name}' must be an integer from {low} to {high}", param=name, hint="Correct it.")


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"tampu:{name}"))
