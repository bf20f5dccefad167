"""The native sampler against its oracle in tampu.sampling: the same token for thousands of random rows."""

from __future__ import annotations

import itertools
import random

import numpy as np
import numpy.typing as npt
import pytest

from tampu import _native
from tampu.core.sampling_params import SamplingParams
from tampu.sampling.sampler import sample_row

Logits = npt.NDArray[np.float32]
ISAS = _native.available_isas()


def random_logits(rng: np.random.Generator, vocab_size: int) -> Logits:
    """Peaked, flat, tied, and partly impossible rows."""
    scale = rng.choice([0.1, 1.0, 3.0, 10.0])
    logits = (rng.standard_normal(vocab_size) * scale).astype(np.float32)
    kind = rng.integers(6)
    if kind == 0:
        logits = np.round(logits)  # many ties
    elif kind == 1:
        logits[:] = rng.choice([0.0, -3.5, 2.0])  # nothing but ties
    elif kind == 2:
        logits[rng.random(vocab_size) < 0.5] = -np.inf
    elif kind == 3:
        logits[rng.integers(vocab_size)] += 40.0
    return logits


def random_params(rng: random.Random, vocab_size: int) -> SamplingParams:
    bias = tuple((rng.randrange(vocab_size), rng.uniform(-5, 5)) for _ in range(rng.choice((0, 0, 3))))
    return SamplingParams(
        temperature=rng.choice((0.0, 1e-30, 0.3, 0.7, 1.0, 1.0, 2.5)),
        top_k=rng.choice((0, 0, 1, 2, 5, 40, 200, vocab_size - 1, vocab_size, vocab_size + 7)),
        top_p=rng.choice((1.0, 1.0, 0.0, 0.1, 0.5, 0.9, 0.99, 2.0)),
        min_p=rng.choice((0.0, 0.0, 0.01, 0.3, 1.0)),
        repetition_penalty=rng.choice((1.0, 0.0, 1.3, 0.7)),
        frequency_penalty=rng.choice((0.0, 0.0, 0.9, -0.5)),
        presence_penalty=rng.choice((0.0, 0.0, 1.1, -0.7)),
        logit_bias=bias,
        num_logprobs=rng.choice((None, None, 0, 5)),
    )


def state_of(params: SamplingParams, vocab_size: int, num_prompt_tokens: int, seed: int) -> _native.SamplingState:
    return _native.SamplingState(
        vocab_size=vocab_size,
        num_prompt_tokens=num_prompt_tokens,
        temperature=params.temperature,
        top_k=min(params.top_k, vocab_size),
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        seed=seed,
        num_logprobs=-1 if params.num_logprobs is None else params.num_logprobs,
        logit_bias=list(params.logit_bias),
    )


def random_mask(rng: np.random.Generator, vocab_size: int) -> bytes | None:
    """None, sparse, dense, shorter than the vocabulary, or nothing allowed."""
    kind = rng.integers(6)
    if kind < 3:
        return None
    num_bytes = (vocab_size + 7) // 8
    share = (0.02, 0.95, 0.0)[kind - 3] if rng.random() < 0.9 else 0.5
    bits = (rng.random(num_bytes * 8) < share).astype(np.uint8)
    mask = np.packbits(bits, bitorder="little").tobytes()
    return mask[: num_bytes // 2] if rng.random() < 0.2 else mask


def check_rows(isa: str, vocab_size: int, count: int, seed: int) -> int:
    """Compare `count` random rows; returns how many had no token."""
    rng, plain = np.random.default_rng(seed), random.Random(seed)
    num_without = 0
    for _ in range(count):
        logits, params, mask = (
            random_logits(rng, vocab_size),
            random_params(plain, vocab_size),
            random_mask(rng, vocab_size),
        )
        prompt = plain.choices(range(vocab_size), k=plain.randint(1, 20))
        output = plain.choices(range(vocab_size), k=plain.choice((0, 1, 30)))
        row_seed, position = plain.getrandbits(64), len(prompt) + len(output)
        wanted, wanted_logprobs = sample_row(logits, params, prompt, output, mask, row_seed, position)
        state = state_of(params, vocab_size, len(prompt), row_seed)
        state.observe(prompt)
        state.observe(output)
        ((got, got_logprobs),) = _native.sample(logits[None].copy(), [state], [position], [mask], isa)
        assert got == wanted, (params, mask is None, row_seed)
        num_without += got == -1
        if wanted_logprobs is not None and got_logprobs is not None:
            assert got_logprobs[0] == pytest.approx(wanted_logprobs.logprob, abs=1e-9)
            finite = [pair for pair in wanted_logprobs.top if pair[1] > -np.inf]
            assert [token_id for token_id, _ in got_logprobs[1]] == [token_id for token_id, _ in finite]
            np.testing.assert_allclose([p for _, p in got_logprobs[1]], [p for _, p in finite], atol=1e-9)
        else:
            assert got_logprobs is None
            assert wanted_logprobs is None
    return num_without


@pytest.mark.parametrize("isa", ISAS)
def test_small_vocabularies(isa: str) -> None:
    assert check_rows(isa, 37, 1000, seed=1) > 0
    check_rows(isa, 1000, 1000, seed=2)


@pytest.mark.parametrize("isa", ISAS)
def test_the_vocabulary_of_llama_3(isa: str) -> None:
    check_rows(isa, 128_256, 60, seed=3)


@pytest.mark.parametrize("isa", ISAS)
def test_cuts_far_down_a_row_are_exact(isa: str) -> None:
    rng = np.random.default_rng(4)
    vocab_size = 128_256
    normal = rng.standard_normal(vocab_size).astype(np.float32)
    rows = (normal, normal * np.float32(0.05), np.round(normal * 2), np.zeros(vocab_size, np.float32), normal + 1000)
    for params in (
        SamplingParams(temperature=1.0, top_p=0.5),
        SamplingParams(temperature=0.7, top_p=0.99),
        SamplingParams(temperature=1.0, top_k=100_000, top_p=0.8),
        SamplingParams(temperature=1.0, top_k=50_000),
    ):
        states = [state_of(params, vocab_size, 1, seed) for seed in range(len(rows))]
        drawn = _native.sample(np.stack(rows), states, [9] * len(rows), [None] * len(rows), isa)
        wanted = [sample_row(row, params, [0], [], None, seed, 9)[0] for seed, row in enumerate(rows)]
        assert [token_id for token_id, _ in drawn] == wanted


def rows_that_mislead_a_sample(rng: np.random.Generator, vocab_size: int) -> list[Logits]:
    """Every 32nd token is unlike its neighbours: a sample taken at a fixed stride sees only those, or none of them."""
    rows = []
    for offset in range(0, 32, 8):
        for sign in (1, -1):
            row = rng.standard_normal(vocab_size).astype(np.float32)
            row[offset::32] += np.float32(4 * sign)
            rows.append(row)
    return rows


# No multiples of any block; only the larger one is large enough for guesses.
@pytest.mark.parametrize("vocab_size", [5003, 20_011])
@pytest.mark.parametrize("isa", ISAS)
def test_a_cut_that_was_guessed_is_exact_and_a_wrong_guess_is_found_out(isa: str, vocab_size: int) -> None:
    rng = np.random.default_rng(5)
    normal = rng.standard_normal(vocab_size).astype(np.float32)
    masked = np.where(rng.random(vocab_size) < 0.7, normal, np.float32(-np.inf))
    scaled = [normal * np.float32(scale) for scale in (1e-6, 0.01, 0.1, 0.5, 1.0, 1.7, 2.5, 4.0)]
    hardly_below_half = np.where(rng.random(vocab_size) < 0.5, np.float32(0), np.float32(-0.6931475))
    misleading = rows_that_mislead_a_sample(rng, vocab_size)
    rows = [*scaled, masked, hardly_below_half, np.sort(normal), np.round(normal), *misleading]
    for top_p, min_p in itertools.product((1.0, 0.999, 0.9, 0.5, 0.1, 0.001), (0.0, 1e-4, 0.02, 0.5)):
        params = SamplingParams(temperature=1.0, top_p=top_p, min_p=min_p)
        states = [state_of(params, vocab_size, 1, seed) for seed in range(len(rows))]
        drawn = _native.sample(np.stack(rows), states, [9] * len(rows), [None] * len(rows), isa)
        wanted = [sample_row(row, params, [0], [], None, seed, 9)[0] for seed, row in enumerate(rows)]
        assert [token_id for token_id, _ in drawn] == wanted, params


@pytest.mark.parametrize("isa", ISAS)
def test_rows_at_the_ends_of_the_floats(isa: str) -> None:
    """Bins of such rows would be infinitely wide or narrow."""
    vocab_size = 20_000
    pick = np.arange(vocab_size) % 3 == 0
    rows = [
        (np.where(pick, 10, -12), 5e-38),
        (np.where(pick, 3e38, -3e38), 1.0),
        (np.where(pick, 1e-40, 0), 1.0),
        (np.full(vocab_size, np.finfo(np.float32).min), 1.0),
    ]
    for values, temperature in rows:
        logits = values.astype(np.float32)
        for params in (SamplingParams(temperature=temperature, top_p=0.9), SamplingParams(top_k=5)):
            for row in (logits, logits[:100]):
                state = state_of(params, row.size, 1, 3)
                ((got, _),) = _native.sample(row[None].copy(), [state], [9], [None], isa)
                assert got == sample_row(row, params, [0], [], None, 3, 9)[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_unusable_row_gives_no_token(isa: str, value: float) -> None:
    for place in (0, 15, 16, 99, 100):
        logits = np.zeros((1, 101), dtype=np.float32)
        logits[0, place] = value
        state = state_of(SamplingParams(temperature=0.7), 101, 1, 0)
        assert _native.sample(logits, [state], [1], [None], isa) == [(-1, None)]


def test_rows_and_states_must_match_in_number() -> None:
    state = state_of(SamplingParams(), 10, 1, 0)
    with pytest.raises(ValueError):
        _native.sample(np.zeros((2, 10), dtype=np.float32), [state], [1], [None], ISAS[0])
    with pytest.raises(ValueError):
        _native.sample(np.zeros((1, 11), dtype=np.float32), [state], [1], [None], ISAS[0])
