"""Estimates of outputs stay within their bounds, and are quantiles of what was seen."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.lengths import MIN_SAMPLES, WINDOW, LengthEstimator


@given(
    st.lists(st.integers(1, 4000), max_size=80),
    st.floats(0.05, 0.95),
    st.integers(0, 5000),
    st.integers(1, 6000),
    st.one_of(st.none(), st.integers(1, 6000)),
)
@settings(max_examples=300, deadline=None)
def test_within_the_bound_and_growing_with_risk(
    seen: list[int], quantile: float, generated: int, most: int, hint: int | None
) -> None:
    estimator = LengthEstimator()
    for length in seen:
        estimator.observe("chat", length)
    left = estimator.remaining("chat", quantile, generated, most, hint=hint)
    assert 1 <= left <= max(most - generated, 1)
    assert left <= estimator.remaining("chat", min(0.99, quantile + 0.04), generated, most, hint=hint)
    if hint is not None and generated < hint <= most:
        assert left == hint - generated


def test_quantile_of_the_lengths_beyond_what_is_out() -> None:
    estimator = LengthEstimator()
    for length in range(1, 101):
        estimator.observe("chat", length)
    assert estimator.remaining("chat", 0.75, 0, 1000) == 75
    assert estimator.remaining("chat", 0.5, 60, 1000) == 20
    assert estimator.remaining("other", 0.75, 0, 1000) == 75, "a class without data takes what all did"


def test_only_the_recent_count_and_the_narrowest_key_wins() -> None:
    estimator = LengthEstimator()
    for _ in range(WINDOW):
        estimator.observe("chat", 10, "slow", 100)
    for _ in range(WINDOW):
        estimator.observe("chat", 500, "fast", 100)
    assert estimator.remaining("chat", 0.5, 0, 1000, tenant="slow", prompt_tokens=100) == 10
    assert estimator.remaining("chat", 0.5, 0, 1000, tenant="new", prompt_tokens=100) == 500
    few = LengthEstimator(prior_tokens=77)
    for _ in range(MIN_SAMPLES - 1):
        few.observe("chat", 5)
    assert few.remaining("chat", 0.5, 0, 1000) == 77
