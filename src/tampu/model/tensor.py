"""One stored tensor: bytes as the file has them, under its Hugging Face name. No arithmetic here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Types kept as stored, in GGUF's spelling. Any other type is dequantised to F32 when the checkpoint is read.
NATIVE_QTYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A weight in Hugging Face orientation and row order (GGUF's permuted q and k rows are put back).

    `data` is one-dimensional uint8, C order, row by row; a row of `shape[-1]` values is a whole number of blocks.
    It may be a view of a memory-mapped file: read it once, in order, and drop it.
    """

    name: str  # e.g. "model.layers.0.self_attn.q_proj.weight"
    qtype: str  # one of NATIVE_QTYPES
    shape: tuple[int, ...]  # (out_features, in_features) or (n,)
    data: npt.NDArray[np.uint8]
