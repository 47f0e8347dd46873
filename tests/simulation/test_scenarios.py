"""Workloads: moments and burstiness of the public files, slices that mean the same at every rate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulation.scenarios import sources
from simulation.scenarios.catalog import PAPER_SCENARIOS, SCENARIOS, find_scenario, mixture
from simulation.scenarios.distributions import GapProcess, JointLengths, QuantileTable, burstiness
from simulation.scenarios.fit import FITTED
from simulation.scenarios.public_data import DataError, read
from simulation.scenarios.slices import MIN_DURATION_S, build
from simulation.scenarios.sources import Part

# Of the public files, by the scenario's filters: (prompt mean, std), (output mean, std).
LENGTHS = {
    "sharegpt": (2048, (607, 512), (396, 260)),
    "arxiv": (4096, (2689, 836), (186, 114)),
    "humaneval": (2048, (157, 72), (66, 47)),
    "azure-code": (8192, (2048, 1974), (28, 60)),
}
# (requests per second, CV of gaps, peak over mean of 10 s bins).
ARRIVALS = {"azure-code": (2.57, 13.2, 10.1), "azure-conv": (5.53, 1.09, 1.84), "deepseek-r1": (16.0, 1.14, 1.46)}


@pytest.mark.parametrize("name", LENGTHS)
def test_fitted_lengths_have_the_moments_of_the_file(name: str) -> None:
    window, prompt_moments, output_moments = LENGTHS[name]
    prompt, output = sources.lengths(name, window, 40_000, Part.REPORT, None, np.random.default_rng(3))
    for sample, (mean, std) in ((prompt, prompt_moments), (output, output_moments)):
        assert sample.mean() == pytest.approx(mean, rel=0.06)
        assert sample.std() == pytest.approx(std, rel=0.2)
    assert (prompt + output <= window).all()
    assert (prompt >= 1).all()
    assert (output >= 1).all()


@pytest.mark.parametrize("name", ARRIVALS)
def test_fitted_arrivals_have_the_rate_and_burstiness_of_the_file(name: str) -> None:
    rate, cv, peak = ARRIVALS[name]
    found = []
    for seed in range(9):
        times = sources.arrivals(name, Part.REPORT, None, np.random.default_rng(seed))
        assert len(times) / sources.SLICE_S == pytest.approx(rate, rel=0.01)
        assert (np.diff(times) >= 0).all()
        assert times[-1] < sources.SLICE_S
        found.append(burstiness(times))
    median = np.median(found, axis=0)
    assert median[0] == pytest.approx(cv, rel=0.3)
    assert median[1] == pytest.approx(peak, rel=0.35)


def test_a_joint_fit_keeps_the_rank_correlation() -> None:
    rng = np.random.default_rng(0)
    first = rng.lognormal(5.0, 1.0, 20_000)
    second = first * rng.lognormal(0.0, 0.3, 20_000)
    drawn = JointLengths.of([first.astype(np.int64) + 1, second.astype(np.int64) + 1]).sample(20_000, rng)
    expected = np.corrcoef(np.log(first), np.log(second))[0, 1]
    assert np.corrcoef(np.log(drawn[0]), np.log(drawn[1]))[0, 1] == pytest.approx(expected, abs=0.03)


def test_correlated_gaps_are_what_makes_bursts() -> None:
    gaps = QuantileTable.of(np.random.default_rng(0).exponential(1.0, 10_000))
    shares = [
        burstiness(GapProcess(gaps, correlation, 1.0).sample(5000.0, np.random.default_rng(1)))[2]
        for correlation in (0.0, 0.95)
    ]
    assert shares[1] > 1.5 * shares[0]


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("rate", [0.2, 3.0, 40.0])
def test_a_slice_has_the_rate_that_was_asked_for_and_never_less_than_ten_minutes(name: str, rate: float) -> None:
    workload = build(find_scenario(name), rate)
    assert workload.sessions / workload.duration_s == pytest.approx(rate, rel=0.05)
    assert workload.duration_s >= 0.97 * MIN_DURATION_S
    arrivals = workload.arrival_s[~np.isnan(workload.arrival_s)]
    assert (np.diff(arrivals) >= 0).all()
    assert len(arrivals) == workload.sessions


def test_the_same_requests_come_at_every_rate() -> None:
    slow, fast = (build(find_scenario("mixed"), rate, seed=4) for rate in (1.0, 2.0))
    assert (slow.prompt_tokens == fast.prompt_tokens).all()
    assert np.allclose(slow.arrival_s, 2.0 * fast.arrival_s)


def test_copies_for_high_rates_are_other_requests() -> None:
    base = build(find_scenario("chatbot"), 1.0)
    double = build(find_scenario("chatbot"), 1.9 * len(base) / MIN_DURATION_S)
    assert len(double) == 2 * len(base)
    half = np.sort(double.prompt_tokens)[::2]
    assert not (np.sort(base.prompt_tokens) == half).all()


@pytest.mark.parametrize("name", PAPER_SCENARIOS)
def test_tuning_and_reporting_see_different_requests_and_runs_repeat(name: str) -> None:
    scenario = find_scenario(name)
    tune, report, again = (build(scenario, 1.0, part=part) for part in (Part.TUNE, Part.REPORT, Part.REPORT))
    assert np.array_equal(report.arrival_s, again.arrival_s, equal_nan=True)
    assert np.array_equal(report.prompt_tokens, again.prompt_tokens)
    shared = min(len(tune), len(report))
    assert not np.array_equal(tune.prompt_tokens[:shared], report.prompt_tokens[:shared])


def test_tool_sessions_grow_their_prompt_round_by_round() -> None:
    workload = build(find_scenario("tool-calling"), 0.5)
    rows = np.flatnonzero(workload.next_row >= 0)
    following = workload.next_row[rows]
    assert (following == rows + 1).all()
    assert (workload.session[rows] == workload.session[following]).all()
    grown = workload.prompt_tokens[rows] + workload.output_tokens[rows]
    assert (workload.shared_prefix_tokens[following] == grown).all()
    assert (workload.prompt_tokens[following] > grown).all()
    last = workload.next_row < 0
    tpots = np.array([c.tpot_s for c in workload.classes])[workload.class_index]
    assert (tpots[last] == 0.1).all()
    assert (tpots[~last] == 0.05).all()
    delays = workload.tool_delay_s[following]
    assert np.median(delays) == pytest.approx(2.0, rel=0.15)
    assert delays.mean() == pytest.approx(5.0, rel=0.3)


def test_reasoning_thinks_before_it_answers() -> None:
    workload = build(find_scenario("reasoning"), 4.0)
    assert (workload.thinking_tokens >= 1).all()
    assert (workload.thinking_tokens < workload.output_tokens).all()
    assert (workload.prompt_tokens + workload.output_tokens <= 8192).all()
    assert workload.thinking_tokens.sum() / workload.output_tokens.sum() == pytest.approx(0.74, abs=0.06)


def test_a_wrong_public_file_is_refused(tmp_path) -> None:
    (tmp_path / "azure2023").mkdir()
    (tmp_path / "azure2023/AzureLLMInferenceTrace_code.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    with pytest.raises(DataError, match="SHA-256"):
        read(tmp_path, "azure-code")
    with pytest.raises(DataError, match="is missing"):
        read(tmp_path, "sharegpt")


def test_the_fitted_numbers_are_numbers_alone() -> None:
    assert FITTED.stat().st_size < 40_000


def test_applications_of_the_mixed_scenario_do_not_arrive_together() -> None:
    chatbot = find_scenario("chatbot").build(Part.REPORT, None, np.random.default_rng(0))
    coding = find_scenario("coding").build(Part.REPORT, None, np.random.default_rng(1))
    mixed = mixture(chatbot, coding, replace(chatbot, prompt_tokens=chatbot.prompt_tokens + 1))
    assert len(mixed) == 2 * len(chatbot) + len(coding)
    assert (np.diff(mixed.arrival_s) >= 0).all()
    assert (np.diff(mixed.arrival_s) == 0).mean() < 0.01
    assert mixed.duration_s <= sources.SLICE_S
