"""Filters over the candidates of a draw. Pure.

A candidate list is token ids in the order (logit descending, id ascending), with un-normalised probabilities
exp(logit - max) in double precision beside it. Each filter keeps a prefix of it, at least one candidate.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float64]


def ranked(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """All token ids, most likely first, the lower id first among equals."""
    return np.argsort(-logits, kind="stable")


def top_k_count(top_k: int, num_candidates: int) -> int:
    """How many of the candidates stay. 0 = off."""
    return min(top_k, num_candidates) if top_k > 0 else num_candidates


def top_p_count(top_p: float, weights: Weights) -> int:
    """Length of the shortest prefix whose share of the mass reaches `top_p`; 1 and more = off."""
    if top_p >= 1.0:
        return weights.size
    mass = np.cumsum(weights)
    return int(np.argmax(mass >= top_p * mass[-1])) + 1


def min_p_count(min_p: float, weights: Weights) -> int:
    """How many candidates are at least `min_p` times as likely as the first; 0 = off."""
    return max(1, int(np.count_nonzero(weights >= min_p * weights[0])))
