"""Draws the next token of one row. The order of the steps is the one SamplingParams documents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tampu.core.request import TokenMask
from tampu.core.sampling_params import SamplingParams
from tampu.core.step import TokenLogprobs
from tampu.sampling.adjustments import (
    Logits,
    apply_count_penalties,
    apply_logit_bias,
    apply_mask,
    apply_repetition_penalty,
)
from tampu.sampling.filters import min_p_count, ranked, top_k_count, top_p_count
from tampu.sampling.uniform import uniform

# The row cannot be sampled: its logits hold NaN or +infinity, or its mask allows nothing.
NO_TOKEN = -1


def sample_row(
    logits: Logits,
    params: SamplingParams,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    mask: TokenMask | None,
    seed: int,
    position: int,
) -> tuple[int, TokenLogprobs | None]:
    """The token at absolute `position` and, when asked for, its log-probabilities; NO_TOKEN when there is none.

    `logits` is (vocab_size,) float32 and is not changed. Log-probabilities come from it as it is.
    """
    if np.isnan(logits).any() or np.isposinf(logits).any():
        return NO_TOKEN, None
    with np.errstate(all="ignore"):  # absurd penalties overflow: tested below, not warned about
        adjusted = apply_logit_bias(logits, params.logit_bias)
        adjusted = apply_repetition_penalty(adjusted, params.repetition_penalty, [*prompt_ids, *output_ids])
        adjusted = apply_count_penalties(adjusted, params.frequency_penalty, params.presence_penalty, output_ids)
    adjusted = apply_mask(adjusted, mask)
    # One test for every way to end without a usable candidate.
    if not np.isfinite(adjusted.max()):
        return NO_TOKEN, None
    token_id = _draw(adjusted, params, seed, position)
    if params.num_logprobs is None:
        return token_id, None
    return token_id, logprobs_of(logits, token_id, params.num_logprobs)


def _draw(adjusted: Logits, params: SamplingParams, seed: int, position: int) -> int:
    most_likely = int(np.argmax(adjusted))  # the lowest id among equals
    if params.is_greedy:
        return most_likely
    with np.errstate(all="ignore"):
        scaled = adjusted / np.float32(params.temperature)
    if not np.isfinite(scaled[most_likely]):  # so cold that float32 overflows: the limit is greedy
        return most_likely
    candidates, weights = _candidates(scaled, params)
    by_id = np.argsort(candidates)  # the draw walks what the filters kept in id order
    candidates, weights = candidates[by_id], weights[by_id]
    mass = np.cumsum(weights)
    target = uniform(seed, position) * mass[-1]
    chosen = int(np.argmax(mass > target)) if mass[-1] > target else int(np.flatnonzero(weights)[-1])
    return int(candidates[chosen])


def _candidates(scaled: Logits, params: SamplingParams) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Token ids and exp(logit - max): all of them, or those that pass the filters, most likely first."""
    if params.top_k == 0 and params.top_p >= 1.0 and params.min_p == 0.0:
        return np.arange(scaled.size), _weights(scaled)
    candidates = ranked(scaled)
    candidates = candidates[: top_k_count(params.top_k, candidates.size)]
    weights = _weights(scaled[candidates])
    weights = weights[: top_p_count(params.top_p, weights)]
    weights = weights[: min_p_count(params.min_p, weights)]
    return candidates[: weights.size], weights


def _weights(logits: Logits) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    return np.asarray(np.exp(wide - wide.max()))


def logprobs_of(logits: Logits, token_id: int, num_top: int) -> TokenLogprobs:
    """Natural-log probability of a token and of the `num_top` most likely ones, from unmodified logits."""
    wide = logits.astype(np.float64)
    peak = wide.max()
    logprobs = wide - (peak + np.log(np.exp(wide - peak).sum()))
    top = ranked(logits)[:num_top]
    return TokenLogprobs(float(logprobs[token_id]), tuple((int(i), float(logprobs[i])) for i in top))
