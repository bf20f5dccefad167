"""What the use cases need of the rooms below, as protocols: an engine of token ids, and text to and from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from tampu.core.output import RequestOutput
from tampu.core.request import Request, TokenConstraint
from tampu.core.stats import EngineHealth, EngineStats
from tampu.serving.requests import GenerateRequest


class EngineState(Protocol):
    """How the engine does, for metrics and health. Thread-safe; nothing here blocks."""

    def stats(self) -> EngineStats:
        """A snapshot for metrics."""

    def health(self) -> EngineHealth:
        """Whether it lives and can serve."""


class GenerationEngine(EngineState, Protocol):
    """The engine as seen from above. Thread-safe; nothing here but `start` blocks."""

    @property
    def max_model_len(self) -> int:
        """Tokens a request may hold, prompt and answer together."""

    def start(self, deliver: Callable[[list[RequestOutput]], None]) -> None:
        """Begin to serve; `deliver` is called from the engine's thread, at most once a step."""

    def submit(self, request: Request) -> None:
        """Queue a request. Raises OverloadedError, EngineDeadError or ContextLengthError."""

    def abort(self, request_id: str) -> None:
        """End a request within one step; unknown and finished ids are ignored."""


class TokenDecoder(Protocol):
    """Token ids of one answer back to text, whole characters only."""

    def add(self, token_ids: Sequence[int]) -> str:
        """Text that became certain with these tokens."""

    def finish(self) -> str:
        """What was held back."""


class StopMatcher(Protocol):
    """Cuts the text of one answer before the first stop string."""

    matched: str | None

    def feed(self, text: str) -> str:
        """Text that can no longer become part of a stop string."""

    def finish(self) -> str:
        """What was held back; empty after a match."""


class ConstraintSource(Protocol):
    """A compiled grammar; makes the constraint of one request after another."""

    def new_constraint(self, max_tokens: int) -> TokenConstraint:
        """A fresh constraint, of a request that may have this many tokens."""


@runtime_checkable
class BudgetedConstraint(Protocol):
    """A constraint that brings the answer to a proper end before `max_tokens` cut it."""

    @property
    def is_cut_short(self) -> bool:
        """True when it had to: the answer would have gone on."""


@runtime_checkable
class PromisingConstraint(Protocol):
    """A constraint that can tell which calls are certain to be completed, so that they may be delivered in pieces."""

    def promises_call(self, num_tokens: int) -> bool:
        """True when, after so many tokens of the answer, a call is in the making that will be valid and complete.

        Thread-safe for tokens that the engine has delivered.
        """


class TextCodec(Protocol):
    """Everything text about one model: template, tokenizer, and the way back."""

    @property
    def vocab_size(self) -> int:
        """Rows of the logits: a token id at or beyond it means nothing."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    def encode(self, request: GenerateRequest) -> tuple[int, ...]:
        """The prompt of a request, rendered and tokenised. May take long for long prompts."""

    async def constraint(self, request: GenerateRequest) -> ConstraintSource | None:
        """What the request's `response_format`, tools and `tool_choice` demand of the answer; None = nothing.

        Compiles off the event loop. Raises UnsupportedSchemaError.
        """

    def decoder(self) -> TokenDecoder:
        """A fresh decoder."""

    def tool_decoder(self) -> TokenDecoder:
        """A fresh decoder that also shows the special tokens which mark tool calls."""

    def stop_matcher(self, stops: Sequence[str]) -> StopMatcher:
        """A fresh matcher."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; empty for special tokens."""

    def close(self) -> None:
        """Free the threads that compile."""
