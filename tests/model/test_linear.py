"""The packed linear layers of the native extension against `gguf` and plain NumPy.

What must hold for every weight format, instruction set and activation type: stored values survive packing exactly,
results are right, and a row's bits depend on nothing but the row.
"""

from __future__ import annotations

import itertools

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from tampu._native import linear

ISAS = linear.available_isas()
FORMATS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K")
QUANTIZED = FORMATS[3:]
BLOCK = {name: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0] for name in FORMATS}
MODES = (("f32", "none"), ("int8", "none"), ("int8", "some"), ("int8", "all"))
FINE = ("none", "some", "all")  # which groups of activations keep 16 bits

Floats = NDArray[np.float32]


def random_blocks(rng: np.random.Generator, name: str, n: int, k: int) -> NDArray[np.uint8]:
    """Valid bytes of n rows: every bit pattern in the integers, scales of mixed sign and size, zero included."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    if name in ("F32", "F16"):
        values = rng.standard_normal((n, k)) * rng.choice([1e-3, 1.0, 30.0], (n, 1))
        return values.astype(np.float32 if name == "F32" else np.float16).view(np.uint8)
    if name == "BF16":
        high_halves = rng.standard_normal((n, k)).astype(np.float32).view(np.uint16).reshape(n, k, 2)[..., 1]
        return np.ascontiguousarray(high_halves).view(np.uint8)
    raw = rng.integers(0, 256, (n, k // block, size), dtype=np.uint8)
    scales = rng.standard_normal((n, k // block, 2)) * rng.choice([0.0, 1e-7, 0.01, 0.5], (n, k // block, 2))
    scale_bytes = scales.astype(np.float16).view(np.uint8).reshape(n, k // block, 4)
    if name == "Q6_K":
        raw[..., 208:] = scale_bytes[..., :2]
    else:
        width = 2 if name in ("Q8_0", "Q4_0") else 4
        raw[..., :width] = scale_bytes[..., :width]
    return raw.reshape(n, -1)


def stored_values(name: str, raw: NDArray[np.uint8]) -> Floats:
    if name == "F32":
        return raw.view(np.float32)
    if name == "F16":
        return raw.view(np.float16).astype(np.float32)
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]).astype(np.float32, copy=False)


def layer(name: str, raw: NDArray[np.uint8], k: int, isa: str, activations: str, fine: str = "none"):
    flags = b"" if fine == "none" else fine_flags(k, fine).astype(np.uint8).tobytes()
    return linear.Layer([(name, raw.tobytes(), raw.shape[0])], k, isa, activations, flags)


def fine_flags(k: int, fine: str) -> NDArray[np.bool_]:
    groups = np.arange(k // 32)
    return {"none": groups < 0, "some": groups % 3 == 1, "all": groups >= 0}[fine]


def kept_activations(x: Floats, fine: str) -> NDArray[np.float64]:
    """What groups of 32 keep of x, by the definition in the native sources: offset + scale * level."""
    groups = x.reshape(x.shape[0], -1, 32)
    levels = np.where(fine_flags(x.shape[1], fine), np.float32(65535), np.float32(255))
    smallest, largest = groups.min(axis=-1), groups.max(axis=-1)
    scale = largest / levels - smallest / levels
    inverse = np.where(scale > 0, np.float32(1) / np.where(scale > 0, scale, np.float32(1)), np.float32(0))
    level = np.minimum(np.rint((groups - smallest[..., None]) * inverse[..., None]), levels[:, None])
    kept = smallest.astype(np.float64)[..., None] + level * scale.astype(np.float64)[..., None]
    return kept.reshape(x.shape)


def assert_close(
    actual: Floats, expected: NDArray[np.float64], magnitude: NDArray[np.float64], relative: float
) -> None:
    """Error bounded by the sum of the magnitudes of what was added: the only bound that cancellation leaves."""
    error = np.abs(actual.astype(np.float64) - expected)
    assert (error <= relative * magnitude + 1e-30).all(), float((error / (magnitude + 1e-30)).max())


def shapes(name: str) -> list[tuple[int, int]]:
    """(n, k): partial panels, one block of K, several tiles of K with a remainder."""
    block = max(BLOCK[name], 32)
    return [(1, block), (17, 3 * block), (65, 1024 if block == 256 else 864)]


@pytest.mark.parametrize("name", FORMATS)
def test_dequantized_rows_equal_the_gguf_library_bit_for_bit(name: str) -> None:
    rng = np.random.default_rng(1)
    raw = random_blocks(rng, name, 70, 768)
    packed = layer(name, raw, 768, "portable", "f32")
    assert np.array_equal(packed.dequantize(0, 70).view(np.uint32), stored_values(name, raw).view(np.uint32))


@pytest.mark.parametrize("name", [n for n in QUANTIZED if n in ("Q8_0", "Q4_0", "Q4_1")])
def test_rows_quantized_by_the_gguf_library_come_back(name: str) -> None:
    weights = np.random.default_rng(2).standard_normal((33, 96)).astype(np.float32)
    raw = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name]).view(np.uint8)
    assert np.array_equal(layer(name, raw, 96, "portable", "int8").dequantize(0, 33), stored_values(name, raw))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
def test_f32_activations_match_float64(name: str, isa: str) -> None:
    rng = np.random.default_rng(3)
    for (n, k), rows in itertools.product(shapes(name), (1, 2, 7, 33)):
        raw = random_blocks(rng, name, n, k)
        weights = stored_values(name, raw).astype(np.float64)
        x = rng.standard_normal((rows, k)).astype(np.float32)
        y = layer(name, raw, k, isa, "f32").forward(x)
        assert_close(y, x @ weights.T, np.abs(x) @ np.abs(weights.T), 1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fine", FINE)
@pytest.mark.parametrize("name", QUANTIZED)
def test_8_bit_activations_are_the_stated_integer_arithmetic(name: str, fine: str, isa: str) -> None:
    rng = np.random.default_rng(4)
    for (n, k), rows in itertools.product(shapes(name), (1, 5)):
        raw = random_blocks(rng, name, n, k)
        weights = stored_values(name, raw).astype(np.float64)
        x = (rng.standard_normal((rows, k)) * rng.choice([1e-6, 1.0, 1e4], (rows, 1))).astype(np.float32)
        x_kept = kept_activations(x, fine)
        assert np.abs(x_kept - x).max() <= np.abs(x).max() * (2e-5 if fine == "all" else 0.005)
        y = layer(name, raw, k, isa, "int8", fine).forward(x)
        # Rounding of the float sums only: the integers are exact. Minima and quants cancel, hence the factor 40.
        assert_close(y, x_kept @ weights.T, np.abs(x_kept) @ np.abs(weights.T) * 40, 1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", QUANTIZED)
def test_without_fine_groups_nothing_but_the_form_changes(name: str, isa: str) -> None:
    rng = np.random.default_rng(14)
    n, k = 65, 1024
    raw = random_blocks(rng, name, n, k)
    x = rng.standard_normal((17, k)).astype(np.float32)
    coarse = linear.Layer([(name, raw.tobytes(), n)], k, isa, "int8", bytes(k // 32))
    y = layer(name, raw, k, isa, "int8").forward(x)
    assert_close(coarse.forward(x), y, np.abs(x) @ np.abs(stored_values(name, raw)).T, 1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fine", FINE)
@pytest.mark.parametrize("name", QUANTIZED)
def test_the_largest_integers_do_not_overflow(name: str, fine: str, isa: str) -> None:
    n, k = 32, 256
    signs = np.array([[1], [-1]], np.float32)
    x = np.concatenate([np.ones((2, k), np.float32) * signs, np.tile(signs.T, (1, k // 2)).astype(np.float32)])
    for filling in (0x00, 0x80, 0xFF):
        raw = np.full((n, random_blocks(np.random.default_rng(0), name, 1, k).shape[1]), filling, np.uint8)
        half = np.array([1.0], np.float16).view(np.uint8)
        blocks = raw.reshape(n, k // BLOCK[name], -1)
        if name == "Q6_K":
            blocks[..., 208:] = half
        else:
            blocks[..., :2] = half
            if name in ("Q4_1", "Q4_K", "Q5_K"):
                blocks[..., 2:4] = half
        weights = stored_values(name, raw).astype(np.float64)
        y = layer(name, raw, k, isa, "int8", fine).forward(x)
        assert_close(y, x @ weights.T, np.abs(x) @ np.abs(weights.T) + 40, 1e-6)


@pytest.mark.parametrize(("activations", "fine"), MODES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_row_has_the_same_bits_in_any_company(name: str, isa: str, activations: str, fine: str) -> None:
    rng = np.random.default_rng(5)
    n, k = 97, 1024
    packed = layer(name, random_blocks(rng, name, n, k), k, isa, activations, fine)
    x = rng.standard_normal((41, k)).astype(np.float32)
    alone = np.concatenate([packed.forward(x[i : i + 1]) for i in range(len(x))])
    for count, begin, parts in ((2, 0, 1), (3, 4, 2), (6, 1, 3), (7, 0, 4), (13, 20, 1), (41, 0, 2), (40, 1, 4)):
        together = packed.forward(x[begin : begin + count], parts)
        assert np.array_equal(together.view(np.uint32), alone[begin : begin + count].view(np.uint32)), (count, parts)


@pytest.mark.parametrize("isa", ISAS)
def test_many_rows_of_a_wide_layer_cross_every_block_boundary(isa: str) -> None:
    rng = np.random.default_rng(6)
    n, k, rows = 40, 4096, 130
    packed = layer("Q4_K", random_blocks(rng, "Q4_K", n, k), k, isa, "int8")
    x = rng.standard_normal((rows, k)).astype(np.float32)
    together = packed.forward(x, 2)
    for row in (0, 1, 105, 106, 107, 129):
        assert np.array_equal(packed.forward(x[row : row + 1])[0], together[row])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_fused_matrices_equal_separate_ones(isa: str, activations: str) -> None:
    rng = np.random.default_rng(7)
    k, parts = 512, (("Q4_K", 33), ("Q6_K", 20), ("Q8_0", 64))
    raws = [random_blocks(rng, name, n, k) for name, n in parts]
    fused = linear.Layer(
        [(name, raw.tobytes(), n) for (name, n), raw in zip(parts, raws, strict=True)], k, isa, activations
    )
    x = rng.standard_normal((9, k)).astype(np.float32)
    separate = [layer(name, raw, k, isa, activations).forward(x) for (name, _), raw in zip(parts, raws, strict=True)]
    assert fused.out_features == 117
    for num_parts in (1, 2, 3, 4):
        assert np.array_equal(fused.forward(x, num_parts), np.concatenate(separate, axis=1))
    values = np.concatenate([stored_values(name, raw) for (name, _), raw in zip(parts, raws, strict=True)])
    assert np.array_equal(fused.dequantize(0, 117), values)


@pytest.mark.parametrize("isa", ISAS)
def test_a_float_matrix_makes_its_fused_layer_use_f32_activations(isa: str) -> None:
    rng = np.random.default_rng(8)
    raws = {name: random_blocks(rng, name, 32, 64) for name in ("F16", "Q8_0")}
    x = rng.standard_normal((2, 64)).astype(np.float32)
    fused = linear.Layer([(name, raw.tobytes(), 32) for name, raw in raws.items()], 64, isa, "int8")
    weights = np.concatenate([stored_values(name, raw) for name, raw in raws.items()]).astype(np.float64)
    assert_close(fused.forward(x), x @ weights.T, np.abs(x) @ np.abs(weights.T), 1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_add_is_store_plus_what_was_there_and_touches_nothing_else(isa: str, activations: str) -> None:
    rng = np.random.default_rng(9)
    packed = layer("Q4_1", random_blocks(rng, "Q4_1", 45, 96), 96, isa, activations)
    x = rng.standard_normal((7, 96)).astype(np.float32)
    before = rng.standard_normal((7, 50)).astype(np.float32)
    y = before.copy()
    packed.forward_add(x, y, 2)
    assert np.array_equal(y[:, :45], before[:, :45] + packed.forward(x))
    assert np.array_equal(y[:, 45:], before[:, 45:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activations", ["int8", "f32"])
@pytest.mark.parametrize("formats", [("Q4_K", "Q6_K"), ("Q4_0", "Q5_K"), ("Q8_0", "Q4_1")])
def test_gated_layers_equal_their_two_steps_bit_for_bit(formats: tuple[str, str], isa: str, activations: str) -> None:
    rng = np.random.default_rng(13)
    n, k = 75, 1024
    parts = [(name, random_blocks(rng, name, n, k).tobytes(), n) for name in formats]
    fused = linear.Layer(parts, k, isa, activations)
    x = rng.standard_normal((19, k)).astype(np.float32) * np.float32(0.05)
    two_steps = linear.silu_mul(fused.forward(x), isa)
    for num_parts, rows in ((1, 19), (2, 1), (3, 7), (4, 18)):
        assert np.array_equal(fused.forward_silu_mul(x[:rows], num_parts), two_steps[:rows])


@pytest.mark.parametrize(("activations", "fine"), MODES)
@pytest.mark.parametrize("isa", ISAS)
def test_zero_tiny_and_huge_activations(isa: str, activations: str, fine: str) -> None:
    rng = np.random.default_rng(10)
    raw = random_blocks(rng, "Q4_0", 32, 128)
    packed = layer("Q4_0", raw, 128, isa, activations, fine)
    x = rng.standard_normal((4, 128)).astype(np.float32)
    x[0] = 0
    x[1, 32:64] = 0  # one group of zeros among others
    x[2] *= np.float32(1e-36)
    x[3] *= np.float32(1e30)
    y = packed.forward(x)
    assert np.isfinite(y).all()
    assert not y[0].any()
    expected = x.astype(np.float64) @ stored_values("Q4_0", raw).astype(np.float64).T
    assert np.abs(y[1] - expected[1]).max() <= 0.05 * np.abs(expected[1]).max()
    assert np.abs(y[2]).max() <= 2 * np.abs(expected[2]).max()
    assert np.abs(y[3] - expected[3]).max() <= 0.05 * np.abs(expected[3]).max()


@pytest.mark.parametrize(("activations", "fine"), MODES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_poisoned_row_shows_it_and_leaves_its_neighbours_alone(
    bad: float, isa: str, activations: str, fine: str
) -> None:
    rng = np.random.default_rng(11)
    raw = gguf.quants.quantize(rng.standard_normal((32, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    packed = layer("Q8_0", raw.view(np.uint8), 64, isa, activations, fine)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    clean = packed.forward(x)
    x[1, 5] = bad
    y = packed.forward(x)
    assert not np.isfinite(y[1]).all()
    assert np.array_equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_width_that_is_not_whole_blocks_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} stores blocks of {BLOCK[name]} values.* 300"):
        linear.Layer([(name, b"", 1)], 300, "portable", "int8")


def test_wrong_byte_counts_and_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="5 bytes are not 2 rows of 32"):
        linear.Layer([("Q8_0", b"12345", 2)], 32, "portable", "int8")
    with pytest.raises(ValueError, match="2 flags of groups of 32 for rows of 32"):
        linear.Layer([("Q8_0", bytes(34), 1)], 32, "portable", "int8", bytes(2))
    packed = linear.Layer([("Q8_0", bytes(34), 1)], 32, "portable", "int8")
    with pytest.raises(ValueError, match="wrong width"):
        packed.forward(np.zeros((1, 64), np.float32))


@pytest.mark.parametrize("isa", ISAS)
def test_silu_mul_matches_float64_and_does_not_depend_on_the_tail(isa: str) -> None:
    rng = np.random.default_rng(12)
    x = (rng.standard_normal((3, 154)) * 8).astype(np.float32)
    x[0, :6] = [0.0, -100.0, 100.0, -87.4, 88.4, -0.0]
    gate, up = x[:, :77].astype(np.float64), x[:, 77:].astype(np.float64)
    y = linear.silu_mul(x, isa)
    np.testing.assert_allclose(y, gate / (1 + np.exp(-gate)) * up, rtol=2e-6, atol=1e-30)
    shorter = np.concatenate([x[:, 70:77], x[:, 147:154]], axis=1)
    assert np.array_equal(linear.silu_mul(shorter, isa), y[:, 70:])
