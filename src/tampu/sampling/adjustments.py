"""Changes to a row of logits before anything is drawn: bias, penalties, mask. Pure, float32 in and out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tampu.core.request import TokenMask

Logits = npt.NDArray[np.float32]  # (vocab_size,)


def apply_logit_bias(logits: Logits, logit_bias: Sequence[tuple[int, float]]) -> Logits:
    """Each bias added to its token's logit, in the given order."""
    biased = logits.copy()
    for token_id, bias in logit_bias:
        biased[token_id] += np.float32(bias)
    return biased


def apply_repetition_penalty(logits: Logits, penalty: float, token_ids: Sequence[int]) -> Logits:
    """Logits of tokens seen anywhere (prompt or output): positive ones divided, others multiplied. 0 and 1 = off."""
    if penalty in (0.0, 1.0) or not token_ids:
        return logits
    penalised = logits.copy()
    seen = np.unique(np.asarray(token_ids, dtype=np.int64))
    values = logits[seen]
    penalised[seen] = np.where(values > 0, values / np.float32(penalty), values * np.float32(penalty))
    return penalised


def apply_count_penalties(logits: Logits, frequency: float, presence: float, output_ids: Sequence[int]) -> Logits:
    """`frequency` subtracted once per occurrence in the output, `presence` once for having occurred."""
    if (frequency == 0.0 and presence == 0.0) or not output_ids:
        return logits
    penalised = logits.copy()
    for token_id, count in Counter(output_ids).items():
        penalised[token_id] -= np.float32(frequency) * np.float32(count) + np.float32(presence)
    return penalised


def apply_mask(logits: Logits, mask: TokenMask | None) -> Logits:
    """Tokens whose bit is clear (least significant bit of byte 0 first) or beyond the mask become impossible."""
    if mask is None:
        return logits
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")[: logits.size]
    is_allowed = np.zeros(logits.size, dtype=np.bool_)
    is_allowed[: bits.size] = bits
    return np.where(is_allowed, logits, np.float32(-np.inf))
