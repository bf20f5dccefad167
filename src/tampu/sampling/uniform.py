"""The random number of a position: a pure function of seed and position, so that a draw depends on nothing else."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """A double in [0, 1) for the token at this absolute position. `seed` is 0 .. 2**64 - 1.

    SplitMix64 (Steele, Lea, Flood 2014) jumped straight to its state number `position`; finalised twice, because
    consecutive seeds are as common here as consecutive positions.
    """
    return (_finalise(_finalise((seed + _GOLDEN_GAMMA * (position + 1)) & _MASK)) >> 11) * 2.0**-53


def _finalise(z: int) -> int:
    z ^= z >> 30
    z = z * 0xBF58476D1CE4E5B9 & _MASK
    z ^= z >> 27
    z = z * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31
