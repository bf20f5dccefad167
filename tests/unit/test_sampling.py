"""The sampling oracle: each step on small rows, the draw against its distribution, and the order of the steps."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tampu.core.sampling_params import SamplingParams
from tampu.sampling.adjustments import (
    apply_count_penalties,
    apply_logit_bias,
    apply_mask,
    apply_repetition_penalty,
)
from tampu.sampling.filters import min_p_count, ranked, top_k_count, top_p_count
from tampu.sampling.sampler import NO_TOKEN, logprobs_of, sample_row
from tampu.sampling.uniform import uniform

PLAIN = SamplingParams(temperature=1.0)
GREEDY = SamplingParams(temperature=0.0)


def row(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def draw(logits: np.ndarray, params: SamplingParams, *, seed: int = 0, position: int = 0, **history: object) -> int:
    arguments = {"prompt_ids": (), "output_ids": (), "mask": None, **history}
    return sample_row(logits, params, seed=seed, position=position, **arguments)[0]  # type: ignore[arg-type]


def frequencies(logits: np.ndarray, params: SamplingParams, count: int = 4000) -> list[float]:
    drawn = Counter(draw(logits, params, seed=5, position=i) for i in range(count))
    return [drawn[i] / count for i in range(logits.size)]


class TestUniform:
    def test_values_every_implementation_must_give(self) -> None:
        # Computed once from the definition; the native sampler is held to the same table.
        assert [uniform(seed, position).hex() for seed, position in KNOWN_UNIFORMS] == list(KNOWN_UNIFORMS.values())

    def test_range_and_spread(self) -> None:
        values = np.array([uniform(seed, position) for seed in range(64) for position in range(64)])
        assert values.min() >= 0
        assert values.max() < 1
        assert abs(values.mean() - 0.5) < 0.02
        assert abs(values.var() - 1 / 12) < 0.005
        histogram, _ = np.histogram(values, bins=16, range=(0, 1))
        assert histogram.min() > 4096 / 16 * 0.7

    def test_neighbouring_seeds_and_positions_are_unrelated(self) -> None:
        grid = np.array([[uniform(seed, position) for position in range(200)] for seed in range(200)]) - 0.5
        for other in (
            np.roll(grid, 1, axis=0),
            np.roll(grid, 1, axis=1),
            np.roll(np.roll(grid, 1, axis=0), -1, axis=1),
        ):
            assert abs(float((grid * other).mean())) * 12 < 0.03
        assert len({uniform(seed, position) for seed in range(100) for position in range(100)}) == 10_000


KNOWN_UNIFORMS = {
    (0, 0): "0x1.2086089bfcf34p-2",
    (0, 1): "0x1.9ae7fc7bd2eb5p-1",
    (1, 0): "0x1.b9c847f90581ap-1",
    (42, 17): "0x1.efac725996a44p-3",
    (0xFFFFFFFFFFFFFFFF, 0): "0x1.1140638c16042p-2",
    (0xFFFFFFFFFFFFFFFF, 131071): "0x1.a12ecfeceab6dp-1",
    (0x123456789ABCDEF, 4095): "0x1.21ea867ece564p-1",
}


class TestAdjustments:
    def test_bias_is_added(self) -> None:
        logits = row(1, 2, 3)
        assert apply_logit_bias(logits, ((0, 5.0), (2, -1.0), (0, 1.0))).tolist() == [7, 2, 2]
        assert logits.tolist() == [1, 2, 3]

    def test_repetition_divides_positive_and_multiplies_negative(self) -> None:
        logits = row(2, -2, 0, 4, -4)
        assert apply_repetition_penalty(logits, 2.0, [0, 1, 2, 0, 0]).tolist() == [1, -4, 0, 4, -4]
        assert logits.tolist() == [2, -2, 0, 4, -4]

    @pytest.mark.parametrize("off", [0.0, 1.0])
    def test_repetition_off(self, off: float) -> None:
        logits = row(2, -2)
        assert apply_repetition_penalty(logits, off, [0, 1]) is logits

    def test_count_penalties_look_at_the_output_only(self) -> None:
        logits = row(5, 5, 5)
        assert apply_count_penalties(logits, 0.5, 0.25, [1, 1, 2]).tolist() == [5, 5 - 1.25, 5 - 0.75]
        assert apply_count_penalties(logits, -1.0, 0.0, [1, 1]).tolist() == [5, 7, 5]

    def test_mask_bits_are_least_significant_first(self) -> None:
        logits = np.arange(10, dtype=np.float32)
        masked = apply_mask(logits, bytes([0b00000101, 0b00000010]))
        assert np.flatnonzero(np.isfinite(masked)).tolist() == [0, 2, 9]
        assert apply_mask(logits, None) is logits

    def test_tokens_beyond_the_mask_are_forbidden(self) -> None:
        masked = apply_mask(np.zeros(20, dtype=np.float32), b"\xff")
        assert np.flatnonzero(np.isfinite(masked)).tolist() == list(range(8))


class TestFilters:
    def test_ranking_prefers_the_lower_id_among_equals(self) -> None:
        assert ranked(row(1, 3, 3, 2, 3, -np.inf)).tolist() == [1, 2, 4, 3, 0, 5]

    def test_top_k(self) -> None:
        assert [top_k_count(k, 5) for k in (0, 1, 4, 5, 9)] == [5, 1, 4, 5, 5]

    @pytest.mark.parametrize(
        ("top_p", "kept"), [(0.0, 1), (0.5, 1), (0.500001, 2), (0.75, 2), (0.875, 3), (0.9, 4), (1.0, 4)]
    )
    def test_top_p_keeps_the_shortest_prefix_that_reaches_it(self, top_p: float, kept: int) -> None:
        assert top_p_count(top_p, np.array([4.0, 2.0, 1.0, 1.0])) == kept

    @pytest.mark.parametrize(("min_p", "kept"), [(0.0, 4), (0.25, 4), (0.26, 2), (0.5, 2), (0.6, 1), (1.0, 1)])
    def test_min_p_is_relative_to_the_most_likely(self, min_p: float, kept: int) -> None:
        assert min_p_count(min_p, np.array([4.0, 2.0, 1.0, 1.0])) == kept


class TestDraw:
    def test_greedy_takes_the_lowest_id_among_equals(self) -> None:
        assert draw(row(1, 7, 3, 7), GREEDY) == 1

    def test_distribution_is_softmax(self) -> None:
        logits = row(0, math.log(2), math.log(3), math.log(4))
        np.testing.assert_allclose(frequencies(logits, PLAIN), [0.1, 0.2, 0.3, 0.4], atol=0.025)

    def test_temperature_divides(self) -> None:
        logits = row(0, math.log(2))
        np.testing.assert_allclose(
            frequencies(logits, dataclasses.replace(PLAIN, temperature=0.5)), [0.2, 0.8], atol=0.025
        )

    def test_top_k_then_top_p_over_what_is_left(self) -> None:
        # Shares 0.4, 0.3, 0.2, 0.1; the two most likely hold 4/7 and 3/7 of what top_k keeps.
        logits = np.log(row(0.1, 0.2, 0.3, 0.4))
        two = dataclasses.replace(PLAIN, top_k=2)
        np.testing.assert_allclose(frequencies(logits, two), [0, 0, 3 / 7, 4 / 7], atol=0.025)
        assert frequencies(logits, dataclasses.replace(two, top_p=0.57), 100) == [0, 0, 0, 1]
        assert frequencies(logits, dataclasses.replace(two, top_p=0.58), 200)[2] > 0
        assert frequencies(logits, dataclasses.replace(PLAIN, top_p=0.57), 200)[2] > 0

    def test_the_draw_walks_in_id_order_whatever_the_filters(self) -> None:
        logits = np.log(row(0.2, 0.1, 0.5, 0.2))
        for params in (PLAIN, dataclasses.replace(PLAIN, top_k=3), dataclasses.replace(PLAIN, top_p=0.85)):
            numbers = [(uniform(3, i), draw(logits, params, seed=3, position=i)) for i in range(100)]
            assert [token_id for _, token_id in sorted(numbers)] == sorted(token_id for _, token_id in numbers)

    def test_min_p(self) -> None:
        logits = np.log(row(0.1, 0.2, 0.3, 0.4))
        kept = frequencies(logits, dataclasses.replace(PLAIN, min_p=0.6))
        np.testing.assert_allclose(kept, [0, 0, 3 / 7, 4 / 7], atol=0.025)

    def test_penalties_come_before_temperature_and_mask_wins(self) -> None:
        params = dataclasses.replace(GREEDY, frequency_penalty=1.0, presence_penalty=1.0, repetition_penalty=2.0)
        # 8 / 2 - 2 * 1 - 1 = 1 for token 0, seen twice; token 1 was in the prompt: 6 / 2 = 3.
        assert draw(row(8, 6, 2), params, prompt_ids=(1,), output_ids=(0, 0)) == 1
        assert draw(row(8, 6, 2), params, prompt_ids=(1,), output_ids=(0, 0), mask=b"\x05") == 2
        biased = dataclasses.replace(params, logit_bias=((0, 20.0),))
        assert draw(row(8, 6, 2), biased, prompt_ids=(1,), output_ids=(0, 0)) == 0

    def test_masked_tokens_are_never_drawn(self) -> None:
        logits = np.zeros(64, dtype=np.float32)
        mask = bytes([0, 0b10010000, 0, 0, 0, 0, 0, 1])
        for params in (PLAIN, dataclasses.replace(PLAIN, top_k=50), dataclasses.replace(PLAIN, top_p=0.9999)):
            drawn = {draw(logits, params, mask=mask, position=i) for i in range(200)}
            assert drawn <= {12, 15, 56}
            assert len(drawn) > 1

    def test_same_seed_and_position_same_token_whatever_happened_before(self) -> None:
        logits = np.zeros(1000, dtype=np.float32)
        first = [draw(logits, PLAIN, seed=7, position=i) for i in range(50)]
        assert [draw(logits, PLAIN, seed=7, position=i) for i in reversed(range(50))] == first[::-1]
        assert [draw(logits, PLAIN, seed=8, position=i) for i in range(50)] != first

    def test_extreme_temperatures(self) -> None:
        logits = row(-3, 300, 299)
        assert draw(logits, dataclasses.replace(PLAIN, temperature=1e-45)) == 1
        assert draw(logits, dataclasses.replace(PLAIN, temperature=1e-300)) == 1
        assert draw(logits, dataclasses.replace(PLAIN, temperature=1e-3)) == 1
        assert set(range(3)) == {
            draw(logits, dataclasses.replace(PLAIN, temperature=100.0), position=i) for i in range(400)
        }

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_broken_logits_give_no_token(self, bad: float) -> None:
        for params in (GREEDY, dataclasses.replace(PLAIN, num_logprobs=2)):
            assert sample_row(row(1, bad, 2), params, (), (), None, 0, 0) == (NO_TOKEN, None)

    def test_nothing_allowed_gives_no_token(self) -> None:
        assert draw(row(1, 2, 3), PLAIN, mask=b"\0") == NO_TOKEN
        assert draw(row(-np.inf, -np.inf), GREEDY) == NO_TOKEN
        assert draw(row(-np.inf, 1), GREEDY, mask=b"\x01") == NO_TOKEN

    def test_absurd_penalties_give_a_token_or_none(self) -> None:
        for penalty in (1e-300, 1e-38, 1e6):
            params = dataclasses.replace(GREEDY, repetition_penalty=penalty, logit_bias=((0, 1e38), (1, 1e300)))
            assert draw(row(1e30, -1e30, 2), params, prompt_ids=(0, 1)) in (NO_TOKEN, 0, 2)

    def test_logits_are_left_alone(self) -> None:
        logits = row(1, 2, 3)
        params = dataclasses.replace(PLAIN, logit_bias=((0, 1.0),), repetition_penalty=2.0, frequency_penalty=1.0)
        draw(logits, params, prompt_ids=(0, 1), output_ids=(2,), mask=b"\x03")
        assert logits.tolist() == [1, 2, 3]


class TestLogprobs:
    def test_they_come_from_the_unmodified_logits(self) -> None:
        logits = np.log(row(0.1, 0.2, 0.3, 0.4))
        params = dataclasses.replace(GREEDY, logit_bias=((0, 100.0),), num_logprobs=2)
        token_id, logprobs = sample_row(logits, params, (), (), None, 0, 0)
        assert token_id == 0
        assert logprobs is not None
        assert logprobs.logprob == pytest.approx(math.log(0.1), abs=1e-6)
        assert [token for token, _ in logprobs.top] == [3, 2]
        assert [math.exp(value) for _, value in logprobs.top] == pytest.approx([0.4, 0.3], abs=1e-6)

    def test_only_when_asked_for(self) -> None:
        assert sample_row(row(1, 2), GREEDY, (), (), None, 0, 0)[1] is None
        assert logprobs_of(row(1, 2), 0, 0).top == ()

    def test_impossible_tokens(self) -> None:
        assert logprobs_of(row(1, -np.inf), 1, 1).logprob == -math.inf


LOGITS = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 5.0]),
    top_k=st.integers(0, 50),
    top_p=st.floats(0, 1.2),
    min_p=st.floats(0, 1),
    repetition_penalty=st.sampled_from([0.0, 0.5, 1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, -2.0, 2.0]),
    presence_penalty=st.sampled_from([0.0, -2.0, 2.0]),
)


class TestProperties:
    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(
        LOGITS, PARAMS, st.integers(0, 2**64 - 1), st.binary(min_size=5, max_size=5), st.randoms(use_true_random=False)
    )
    def test_token_is_allowed_and_likely_enough(self, values, params, seed, mask, rng) -> None:  # type: ignore[no-untyped-def]
        logits = np.array(values, dtype=np.float32)
        history = {
            "prompt_ids": tuple(rng.randrange(logits.size) for _ in range(3)),
            "output_ids": tuple(rng.randrange(logits.size) for _ in range(4)),
        }
        allowed = {i for i in range(logits.size) if mask[i // 8] >> i % 8 & 1}
        token_id = draw(logits, params, seed=seed, position=11, mask=mask, **history)
        assert token_id == NO_TOKEN if not allowed else token_id in allowed
        assert draw(logits, params, seed=seed, position=11, mask=mask, **history) == token_id

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(LOGITS, st.integers(0, 2**64 - 1), st.integers(0, 10**6))
    def test_a_filter_that_keeps_one_is_greedy(self, values: list[float], seed: int, position: int) -> None:
        logits = np.array(values, dtype=np.float32)
        expected = draw(logits, GREEDY)
        for params in (
            dataclasses.replace(PLAIN, top_k=1),
            dataclasses.replace(PLAIN, top_p=0.0),
        ):
            assert draw(logits, params, seed=seed, position=position) == expected
        only_peaks = draw(logits, dataclasses.replace(PLAIN, min_p=1.0), seed=seed, position=position)
        assert logits[only_peaks] == logits.max()

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(LOGITS, PARAMS, st.integers(0, 2**64 - 1))
    def test_candidates_against_a_slow_twin(self, values: list[float], params: SamplingParams, seed: int) -> None:
        logits = np.array(values, dtype=np.float32)
        params = dataclasses.replace(
            params,
            temperature=params.temperature or 1.0,
            repetition_penalty=1.0,
            frequency_penalty=0.0,
            presence_penalty=0.0,
        )
        assert draw(logits, params, seed=seed, position=3) == slow_draw(logits, params, uniform(seed, 3))


def slow_draw(logits: np.ndarray, params: SamplingParams, u: float) -> int:
    """The definition, written with Python lists and no cleverness."""
    scaled = [float(np.float32(value) / np.float32(params.temperature)) for value in logits]
    order = list(range(len(scaled)))
    is_filtered = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
    if is_filtered:
        order.sort(key=lambda i: (-scaled[i], i))
    if params.top_k > 0:
        order = order[: params.top_k]
    weight = {i: float(np.exp(scaled[i] - max(scaled))) for i in order}
    if params.top_p < 1:
        total, reached = 0.0, 0.0
        for i in order:
            total += weight[i]
        for count, i in enumerate(order, start=1):
            reached += weight[i]
            if reached >= params.top_p * total:
                order = order[:count]
                break
    if params.min_p > 0:
        order = [i for i in order if weight[i] >= params.min_p * weight[order[0]]] or order[:1]
    order.sort()  # the draw walks what is kept in id order
    total, reached = 0.0, 0.0
    for i in order:
        total += weight[i]
    for i in order:
        reached += weight[i]
        if reached > u * total:
            return i
    return order[-1]
