"""How one request wants its tokens drawn. Values are engine values: a wire default is resolved before this point."""

from __future__ import annotations

from dataclasses import dataclass

from tampu.core.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one request; each row of a batch has its own.

    Order of application to a row of logits: logit_bias, repetition_penalty, frequency_penalty and presence_penalty,
    token mask, temperature, top_k, top_p, min_p, draw.
    """

    temperature: float = 0.6  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0  # >= 1 = off
    min_p: float = 0.0  # 0 = off
    repetition_penalty: float = 1.0  # 0 and 1 = off; prompt and output; divides positive, multiplies negative logits
    frequency_penalty: float = 0.0  # output only, subtracted once per occurrence
    presence_penalty: float = 0.0  # output only, subtracted once
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    max_tokens: int = 256  # >= 1
    stop_token_ids: tuple[int, ...] = ()  # EOS ids are put here by serving, unless ignore_eos
    num_logprobs: int | None = None  # None = none; 0 = the chosen token's only; n = also the n most likely

    def __post_init__(self) -> None:
        checks = (
            ("temperature", 0.0 <= self.temperature <= 100.0),
            ("top_k", self.top_k >= 0),
            ("top_p", 0.0 <= self.top_p <= 1e9),
            ("min_p", 0.0 <= self.min_p <= 1.0),
            ("repetition_penalty", 0.0 <= self.repetition_penalty <= 1e6),
            ("frequency_penalty", -1e6 <= self.frequency_penalty <= 1e6),
            ("presence_penalty", -1e6 <= self.presence_penalty <= 1e6),
            ("max_tokens", self.max_tokens >= 1),
            ("logprobs", self.num_logprobs is None or 0 <= self.num_logprobs <= 20),
        )
        for field, is_ok in checks:
            if not is_ok:
                raise InvalidRequestError(field, f"{field} is out of range")

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """True when the row's token history changes its logits."""
        return (
            self.repetition_penalty not in (0.0, 1.0) or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        )
