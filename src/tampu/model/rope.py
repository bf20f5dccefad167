"""Rotary position embedding: the frequencies, and the angles of a position. One definition for every runner.

Rotation is the half-split form of Hugging Face's Llama: value j of a head is paired with value j + head_dim / 2.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tampu.model.config import Llama3RopeScaling, ModelConfig


def inv_freq(config: ModelConfig) -> npt.NDArray[np.float32]:
    """Radians per position of each rotated pair, (head_dim / 2,), Llama 3.1 scaling applied.

    Computed in double precision and rounded once to float32, the precision the models were trained with.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if config.rope_freq_factors is not None:
        frequencies = frequencies / np.asarray(config.rope_freq_factors, dtype=np.float64)
    elif config.rope_scaling is not None:
        frequencies = _scale_llama3(frequencies, config.rope_scaling)
    return frequencies.astype(np.float32)


def _scale_llama3(frequencies: npt.NDArray[np.float64], scaling: Llama3RopeScaling) -> npt.NDArray[np.float64]:
    """Slow frequencies are divided by `factor`, fast ones kept, those between blended linearly in 1 / wavelength."""
    wavelengths = 2 * math.pi / frequencies
    context = scaling.original_max_position_embeddings
    blend = (context / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    scaled = np.where(wavelengths > context / scaling.low_freq_factor, frequencies / scaling.factor, blended)
    return np.where(wavelengths < context / scaling.high_freq_factor, frequencies, scaled)


def rope_cos_sin(
    frequencies: npt.NDArray[np.float32], positions: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosines and sines, each (len(positions), head_dim / 2).

    The angle is the float32 product of position and frequency, as in the reference implementation; its cosine and
    sine are taken in double precision and rounded once, so that every machine gets the same bits.
    """
    angles = (positions.astype(np.float32)[:, None] * frequencies[None, :]).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
