"""Everything the routes need, built once by the composition root and handed to the app."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Protocol

from tampu.serving.answers import Answer
from tampu.serving.embedder import TextEmbedder
from tampu.serving.events import Event
from tampu.serving.metrics import Metrics
from tampu.serving.model_card import ModelCard
from tampu.serving.ports import EngineState
from tampu.serving.requests import GenerateRequest


class TextGenerator(Protocol):
    """The one use case of a language model. Closing a stream ends its work within one step."""

    def start(self) -> None:
        """Begin to serve. Idempotent."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Events as they come. The first `anext` raises what is wrong with the request."""

    async def complete(self, request: GenerateRequest) -> list[Answer]:
        """The same events, folded into one answer per choice."""


@dataclass(frozen=True, slots=True)
class Services:
    """What one server offers. `embeddings` and `tokens` are None when that feature is not set up."""

    generator: TextGenerator
    model_card: ModelCard
    engine: EngineState
    metrics: Metrics = field(default_factory=Metrics)
    embeddings: TextEmbedder | None = None
    tokens: Any = None
