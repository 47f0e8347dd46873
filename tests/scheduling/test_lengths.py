"""Output lengths: quantiles of what was seen, and what requests say that were cut off."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.lengths import MIN_SAMPLES, PRIOR_TOKENS, LengthEstimator

BOUND = 1 << 20


def learned(lengths: list[int], cut_off: list[bool] | None = None) -> LengthEstimator:
    estimator = LengthEstimator()
    for length, cut in zip(lengths, cut_off or [False] * len(lengths), strict=True):
        estimator.observe("chat", length, cut_off=cut)
    return estimator


def expected(estimator: LengthEstimator, quantile: float = 0.75, generated: int = 0) -> int:
    return generated + estimator.remaining("chat", quantile, generated, BOUND)


@given(st.lists(st.integers(1, 500), min_size=MIN_SAMPLES, max_size=100), st.sampled_from([0.5, 0.75, 0.9, 0.95]))
def test_without_cuts_it_is_the_sample_quantile(lengths: list[int], quantile: float) -> None:
    assert expected(learned(lengths), quantile) == sorted(lengths)[math.ceil(quantile * len(lengths) - 1e-9) - 1]


def test_cut_requests_say_that_they_would_have_been_longer() -> None:
    draw = random.Random(2)
    true = [draw.randint(100, 300) for _ in range(400)]
    limits = [draw.choice([50, 150, 1000]) for _ in true]
    seen = [min(length, limit) for length, limit in zip(true, limits, strict=True)]
    cut = [length > limit for length, limit in zip(true, limits, strict=True)]
    right = expected(learned(true))
    assert expected(learned(seen, cut)) == pytest.approx(right, rel=0.1)
    assert expected(learned(seen)) < 0.8 * right, "taken as complete they would mislead"


def test_when_all_were_cut_the_longest_is_expected() -> None:
    assert expected(learned([400] * MIN_SAMPLES, [True] * MIN_SAMPLES)) == 400
    assert expected(learned([400] * MIN_SAMPLES, [True] * MIN_SAMPLES), generated=450) > 450


def test_the_oldest_are_forgotten_cut_or_not() -> None:
    estimator = learned([900] * 300 + [10] * 512, [True] * 300 + [False] * 512)
    assert expected(estimator, 0.99) == 10


def test_little_data_is_no_data() -> None:
    assert expected(learned([5] * (MIN_SAMPLES - 1))) == PRIOR_TOKENS
