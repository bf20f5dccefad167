"""Storage formats of weights: how many bytes a block has and which values it stands for.

Formats outside `NATIVE_QTYPES` are known only through the `gguf` library, which is imported when one is met.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tampu.model.tensor import Tensor

# (values per block, bytes per block), from the ggml block structures.
BLOCK_SIZES = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}

# GGUF's type numbers of the formats above.
GGML_TYPE_NAMES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    8: "Q8_0",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    30: "BF16",
}


def convertible_type(ggml_type: int) -> tuple[str, tuple[int, int] | None]:
    """Name of a type that is not native, and its block size when the gguf library can dequantise it, else None."""
    import gguf

    try:
        qtype = gguf.GGMLQuantizationType(ggml_type)
    except ValueError:
        return f"number {ggml_type}", None
    values_per_block, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    try:
        # One empty block: the library says itself whether it can.
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), qtype)
    except NotImplementedError:
        return qtype.name, None
    return qtype.name, (values_per_block, block_bytes)


def row_bytes(qtype: str, num_values: int) -> int:
    """Bytes of a row of `num_values` (a whole number of blocks) in a native type."""
    values_per_block, block_bytes = BLOCK_SIZES[qtype]
    return num_values // values_per_block * block_bytes


def dequantize_tensor(tensor: Tensor) -> npt.NDArray[np.float32]:
    """Values of a native tensor as float32 in its own shape, always a fresh array."""
    return dequantize_bytes(tensor.data, tensor.qtype, tensor.shape)


def dequantize_bytes(data: npt.NDArray[np.uint8], qtype: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Values of stored bytes (uint8, row by row) of any type named in GGUF's spelling."""
    if qtype == "F32":
        return np.array(data.view("<f4"), dtype=np.float32).reshape(shape)
    if qtype == "F16":
        return data.view("<f2").astype(np.float32).reshape(shape)
    if qtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    import gguf

    rows = data.reshape(int(np.prod(shape[:-1], dtype=np.int64)), -1)
    with np.errstate(all="ignore"):  # infinite scales are values like others here
        values: Any = gguf.dequantize(rows, gguf.GGMLQuantizationType[qtype])
    return np.ascontiguousarray(values, dtype=np.float32).reshape(shape)
