"""RoPE frequencies: plain, Llama 3.1, and by factors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from checkpoints import LLAMA31_SCALING, TINY, rope_factors
from tampu.model.config import Llama3RopeScaling
from tampu.model.rope import inv_freq, rope_cos_sin


def test_plain_frequencies_are_powers_of_theta() -> None:
    expected = [10000.0 ** (-2 * i / 16) for i in range(8)]
    np.testing.assert_allclose(inv_freq(TINY), expected, rtol=1e-7)


def test_llama31_keeps_fast_pairs_and_slows_slow_ones() -> None:
    scaling = Llama3RopeScaling(8.0, 1.0, 4.0, 8192)
    config = dataclasses.replace(TINY, head_dim=128, rope_theta=500000.0, rope_scaling=scaling)
    plain = inv_freq(dataclasses.replace(config, rope_scaling=None))
    ratio = plain / inv_freq(config)
    wavelengths = 2 * math.pi / plain
    assert np.all(ratio[wavelengths < 8192 / 4] == 1)
    np.testing.assert_allclose(ratio[wavelengths > 8192], 8, rtol=1e-6)
    between = ratio[(wavelengths > 8192 / 4) & (wavelengths < 8192)]
    assert between.size > 3
    assert np.all(np.diff(between) > 0)
    assert between[0] > 1
    assert between[-1] < 8


def test_factors_of_a_gguf_file_give_the_same_frequencies() -> None:
    scaled = dataclasses.replace(TINY, rope_scaling=LLAMA31_SCALING)
    by_factors = dataclasses.replace(TINY, rope_freq_factors=tuple(rope_factors(scaled).tolist()))
    np.testing.assert_allclose(inv_freq(by_factors), inv_freq(scaled), rtol=2e-7)


def test_angles_use_the_float32_product() -> None:
    frequencies = inv_freq(TINY)
    cos, sin = rope_cos_sin(frequencies, np.array([0, 1, 131071]))
    assert cos.shape == sin.shape == (3, 8)
    assert cos.dtype == sin.dtype == np.float32
    assert cos[0].tolist() == [1.0] * 8
    angle = np.float32(131071) * frequencies[3]
    assert sin[2, 3] == np.float32(math.sin(float(angle)))
    np.testing.assert_allclose(cos**2 + sin**2, 1, atol=1e-6)
