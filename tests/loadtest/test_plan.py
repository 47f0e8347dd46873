from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest import plan
from loadtest.arrivals import Spike, poisson
from loadtest.plan import PlanError


def draw(**changes: object) -> plan.Plan:
    wanted: dict[str, object] = {"rate_per_s": 2.0, "duration_s": 60.0, "window_tokens": 2048, "length_scale": 0.2}
    scenario = changes.pop("scenario", "mixed")
    return plan.make(str(scenario), **{**wanted, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("scenario", plan.scenarios())
def test_every_scenario_gives_sessions_that_fit_and_add_up(scenario: str) -> None:
    drawn = draw(scenario=scenario)
    assert [s.number for s in drawn.sessions] == list(range(len(drawn.sessions)))
    starts = [s.start_s for s in drawn.sessions]
    assert starts == sorted(starts)
    assert starts[0] >= 0
    assert starts[-1] < 60.0
    for session in drawn.sessions:
        resident = 0
        for planned in session.rounds:
            assert planned.prompt_tokens + planned.output_tokens <= 2048
            assert planned.prompt_tokens - planned.added_tokens == resident
            assert 0 <= planned.thinking_tokens < planned.output_tokens
            resident = planned.prompt_tokens + planned.output_tokens


def test_only_tool_sessions_have_rounds_and_only_their_last_one_is_loose() -> None:
    drawn = draw(scenario="all", rate_per_s=4.0)
    assert set(drawn.applications) == {"chatbot", "coding", "summarization", "tool", "reasoning"}
    for session in drawn.sessions:
        kinds = [planned.round for planned in session.rounds]
        if session.application == "tool":
            assert kinds == ["inner"] * (len(kinds) - 1) + ["last"]
            assert all(planned.delay_s > 0 for planned in session.rounds[1:])
        else:
            assert kinds == [""]
    assert any(len(s.rounds) > 1 for s in drawn.sessions)


def test_all_gives_the_five_applications_equal_shares_even_in_a_short_run() -> None:
    drawn = draw(scenario="all", rate_per_s=0.5)
    counts = Counter(s.application for s in drawn.sessions)
    assert max(counts.values()) - min(counts.values()) <= 2


def test_same_seed_same_plan_other_seed_other_plan() -> None:
    assert draw(seed=3) == draw(seed=3)
    assert draw(seed=3) != draw(seed=4)


def test_scaling_lengths_scales_what_is_sent() -> None:
    whole, half = draw(length_scale=0.4), draw(length_scale=0.2)

    def mean(drawn: plan.Plan) -> float:
        return float(np.mean([r.prompt_tokens for s in drawn.sessions for r in s.rounds]))

    assert 0.35 < mean(half) / mean(whole) < 0.75


def test_trace_arrivals_keep_the_scenarios_own_bursts() -> None:
    steady = draw(scenario="coding", rate_per_s=3.0, duration_s=300.0)
    bursty = draw(scenario="coding", rate_per_s=3.0, duration_s=300.0, arrivals="trace")

    def peak(drawn: plan.Plan) -> float:
        counts = np.histogram([s.start_s for s in drawn.sessions], bins=30, range=(0, 300))[0]
        return float(counts.max() / counts.mean())

    assert peak(bursty) > 2 * peak(steady)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario": "poetry"}, "known: chatbot"),
        ({"rate_per_s": 0.0}, "positive"),
        ({"window_tokens": 1}, "--length-scale"),
        ({"rate_per_s": 1e-6}, "raise the rate"),
        ({"arrivals": "sometimes"}, "known: poisson"),
        ({"scenario": "all", "arrivals": "trace"}, "poisson or burst"),
    ],
)
def test_impossible_loads_are_refused_with_what_to_do(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        draw(**changes)


@settings(max_examples=30, deadline=None)
@given(
    factor=st.floats(1.0, 8.0),
    start=st.floats(0.0, 0.7),
    length=st.floats(0.05, 0.3),
    seed=st.integers(0, 1000),
)
def test_arrivals_follow_the_spike(factor: float, start: float, length: float, seed: int) -> None:
    spike = Spike(factor, start, length)
    rate, duration = 200.0, 50.0
    times = poisson(rate, duration, np.random.default_rng(seed), spike)
    inside = int(((times >= start * duration) & (times < (start + length) * duration)).sum())
    expected_in, expected_out = rate * factor * length * duration, rate * (1 - length) * duration
    assert abs(inside - expected_in) < 6 * expected_in**0.5
    assert abs(len(times) - inside - expected_out) < 6 * expected_out**0.5
    assert (np.diff(times) >= 0).all()
    assert spike.mean == pytest.approx((expected_in + expected_out) / (rate * duration))


@pytest.mark.parametrize(("factor", "start", "length"), [(0.0, 0.1, 0.1), (2.0, 0.9, 0.2), (2.0, -0.1, 0.1)])
def test_a_spike_outside_the_run_is_refused(factor: float, start: float, length: float) -> None:
    with pytest.raises(ValueError, match="spike"):
        Spike(factor, start, length)
