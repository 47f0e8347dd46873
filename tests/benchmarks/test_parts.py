"""The parts of the benchmarks that compute: what they report must follow from what they were given."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import all as every
from benchmarks import common, overhead, planner, policies, prometheus, render, simulator, sweep, validity
from loadtest.records import Record
from scheduling.time_model import TimeModel
from simulation import profiles
from tests.loadtest.test_summary import record

EXPOSITION = """
# TYPE slos:step_time_error_ratio histogram
slos:step_time_error_ratio_bucket{le="0.5"} 0.0
slos:step_time_error_ratio_bucket{le="1.0"} 30.0
slos:step_time_error_ratio_bucket{le="2.0"} 40.0
slos:step_time_error_ratio_bucket{le="+Inf"} 40.0
slos:time_margin_ratio{replica="worker-0"} 1.12
slos:redis_up 1.0
"""


def test_metrics_are_read_by_name() -> None:
    assert prometheus.values(EXPOSITION, "slos:time_margin_ratio") == [1.12]
    assert prometheus.values(EXPOSITION, "slos:redis_up") == [1.0]
    found = prometheus.buckets(EXPOSITION, "slos:step_time_error_ratio")
    assert found == [(0.5, 0.0), (1.0, 30.0), (2.0, 40.0), (float("inf"), 40.0)]
    assert prometheus.quantile(found, 0.5) == pytest.approx(0.5 + 0.5 * 20 / 30)
    assert prometheus.quantile(found, 0.9) == pytest.approx(1.6)


@given(st.lists(st.floats(0.01, 9.0), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_a_histograms_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    edges = [0.5, 1.0, 2.0, 4.0, 10.0, float("inf")]
    counted = [(edge, float(sum(v <= edge for v in values))) for edge in edges]
    true = common.percentile(values, share)
    assert true is not None
    upper = next(edge for edge in edges if true <= edge)
    lower = max((edge for edge in edges if edge < upper), default=0.0)
    found = prometheus.quantile(counted, share)
    assert found is not None
    assert lower <= found <= upper


def test_what_was_counted_before_a_run_is_left_out_and_nothing_gives_no_quantile() -> None:
    now = prometheus.buckets(EXPOSITION, "slos:step_time_error_ratio")
    assert prometheus.quantile(prometheus.since(now, now), 0.5) is None
    assert prometheus.since(now, []) == now


def test_overhead_alternates_and_compares_pair_by_pair() -> None:
    order: list[str] = []

    def side(name: str, pause_s: float) -> overhead.Generate:
        async def generate(request_id: str, prompt: Sequence[int], output_tokens: int) -> AsyncIterator[int]:
            order.append(f"{name}:{request_id}")
            await asyncio.sleep(pause_s)
            yield 1
            yield output_tokens - 1

        return generate

    both = overhead.compare(side("d", 0.01), side("c", 0.2), count=2, pairs=2, singles=2, fall_asleep_s=0.01)
    result = asyncio.run(both)
    assert result["throughput_ratio_median"] < 0.5
    assert result["added_ttft_ms"]["p50"] > 50
    bursts = [entry.split("-")[0] + entry.split("-")[1] for entry in order if "burst-0" in entry or "burst-1" in entry]
    assert bursts == ["d:burst0"] * 2 + ["c:burst0"] * 2 + ["c:burst1"] * 2 + ["d:burst1"] * 2
    assert [entry for entry in order if "single-" in entry][-4:] == [
        "c:single--7",
        "c:single-1",
        "d:single--8",
        "d:single-1",
    ]


def test_overhead_refuses_a_side_that_loses_tokens() -> None:
    async def generate(request_id: str, prompt: Sequence[int], output_tokens: int) -> AsyncIterator[int]:
        yield output_tokens - 1

    with pytest.raises(RuntimeError, match="output tokens instead of"):
        asyncio.run(overhead.throughput(generate, overhead.burst(2, seed=0)))


def test_a_burst_repeats_by_seed_and_shares_no_prompt_with_another() -> None:
    first, again, other = overhead.burst(4, 1), overhead.burst(4, 1), overhead.burst(4, 2)
    assert first == again
    assert not {r.prompt[:8] for r in first} & {r.prompt[:8] for r in other}
    assert all(32 <= len(r.prompt) <= 256 and 32 <= r.output_tokens <= 96 for r in first)


def test_the_knee_follows_the_engine() -> None:
    work = sweep.Workload("mixed", "poisson", 30.0, 0.1, 1.0, 0, 60.0)
    fast = TimeModel(((0.02, 1e-3, 0.0, 0.0, 0.0, 0.0),))
    knee = sweep.knee_rate_per_s(fast, work, 2048)
    # Half of the step is left for tokens at 1 ms each: 500 of them per second.
    assert 1.0 < knee < 10.0
    assert sweep.knee_rate_per_s(fast.scaled(2.0), work, 2048) == pytest.approx(knee / 2, rel=0.05)
    assert sweep.knee_rate_per_s(fast.with_margin(1.5), work, 2048) == pytest.approx(knee)


def test_policies_are_ranked_by_mean_attainment() -> None:
    def row(policy: str, attainment: float) -> dict[str, object]:
        return {"policy": policy, "classes": [{"application": "all", "attainment": attainment}]}

    means = policies.mean_attainment([row("a", 0.5), row("b", 0.9), row("a", 0.7), row("b", 0.1)])
    assert list(means.items()) == [("a", pytest.approx(0.6)), ("b", pytest.approx(0.5))]


def real_run(count: int = 12) -> list[Record]:
    return [
        record(i, ("chatbot", "coding")[i % 2], sent_s=0.4 * i, prompt_tokens=40 + i, output_tokens=5 + i)
        for i in range(count)
    ]


@pytest.mark.parametrize("policy", ["slos", "vllm-v1"])
def test_the_simulator_gets_the_real_runs_requests_and_reports_the_same_fields(policy: str) -> None:
    records = real_run()
    profile = profiles.load("a100-opt-7b")
    real = validity.real_figures(records)
    simulated = validity.simulate(records, profile, policy, 1.0, validity.Engine((0.95, 1.05), 1.1, 0.01))
    assert set(real.to_dict()) == set(simulated.to_dict())
    assert simulated.requests == simulated.finished == real.finished == len(records)
    assert simulated.prompt_tokens == real.prompt_tokens
    assert simulated.output_tokens == real.output_tokens
    assert simulated.attainment == 1.0
    assert simulated.ttft_p50_ms is not None


def test_the_simulator_takes_over_how_far_off_the_engine_was() -> None:
    records, profile = real_run(), profiles.load("a100-opt-7b")
    exact = validity.simulate(records, profile, "slos", 1.0, validity.Engine())
    slower = validity.simulate(records, profile, "slos", 1.0, validity.Engine((1.2,)))
    assert exact.tpot_p50_ms is not None
    assert slower.tpot_p50_ms == pytest.approx(1.2 * exact.tpot_p50_ms, rel=0.05)
    assert slower.attainment <= exact.attainment
    later = validity.simulate(records, profile, "slos", 1.0, validity.Engine(transit_s=0.02))
    assert exact.ttft_p50_ms is not None
    assert later.ttft_p50_ms == pytest.approx(exact.ttft_p50_ms + 20.0)


def test_how_the_engine_was_is_read_from_the_metrics() -> None:
    def metrics(*counts: int) -> str:
        edges = ("0.9", "1.0", "1.1", "1.2", "+Inf")
        lines = [f'{sweep.STEP_ERROR}_bucket{{le="{e}"}} {n}' for e, n in zip(edges, counts, strict=True)]
        return "\n".join([*lines, ""])

    before = metrics(0, 0, 0, 0, 10) + 'slos:time_margin_ratio{replica="r"} 1.8\n'
    after = metrics(0, 20, 80, 100, 110)
    after += 'slos:time_margin_ratio{replica="r"} 1.25\nslos:relay_p50_seconds 0.01\nslos:relay_p99_seconds 0.02\n'
    engine = validity.engine_of(after, before)
    assert len(engine.factors) == validity.STEP_SHARES
    assert engine.factors[0] == pytest.approx(0.9 + 0.1 * 0.5 / 20)
    assert engine.factors[50] == pytest.approx(1.0 + 0.1 * 30.5 / 60)
    assert engine.factors[-1] == pytest.approx(1.2 - 0.1 * 0.5 / 20)
    assert engine.margin == pytest.approx((1.25 * 1.8) ** 0.5)
    assert (engine.relay_s, engine.transit_s) == (0.02, 0.01)
    assert validity.engine_of("", "") == validity.Engine()


def test_a_refitted_model_counts_half() -> None:
    before, after = TimeModel(((0.02, 1e-4, 0, 0, 0, 0),)), TimeModel(((0.04, 1e-4, 0, 2e-6, 0, 0),), source="refitted")
    assert validity.halfway(before, after).lines == (pytest.approx((0.03, 1e-4, 0.0, 1e-6, 0.0, 0.0)),)
    assert validity.halfway(before, after).source == "refitted"
    assert validity.halfway(TimeModel((*before.lines, *after.lines)), after) == after


def test_classes_of_the_real_run_keep_their_scaled_slos() -> None:
    workload = validity.workload_of(real_run(), scale=2.0)
    assert {(c.name, c.tpot_s) for c in workload.classes} == {("chatbot", 0.2), ("coding", 0.1)}
    with pytest.raises(ValueError, match="tool sessions"):
        validity.workload_of([record(0, "tool", round="inner")], scale=1.0)


@pytest.mark.parametrize(
    ("attainment", "ttft", "within"), [(0.96, 100.0, True), (0.90, 100.0, False), (0.96, 130.0, False)]
)
def test_validity_has_bounds(attainment: float, ttft: float, within: bool) -> None:
    def figures(attained: float, ttft_ms: float) -> validity.Figures:
        return validity.Figures(10, 10, 100, 100, attained, attained, 1.0, 1.0, ttft_ms, ttft_ms, 40.0, 40.0)

    assert validity.compare(figures(1.0, 100.0), figures(attainment, ttft))["within"] is within


def envelope(name: str, result: dict[str, object]) -> dict[str, object]:
    return {
        "benchmark": name,
        "command": f"slosctl bench {name}",
        "measured_at": "2026-01-01",
        "quick": False,
        "environment": common.environment(),
        "settings": {},
        "result": result,
    }


def test_the_page_is_filled_between_the_markers_and_twice_is_once() -> None:
    sides = ("direct", "cluster")
    result: dict[str, object] = {
        "throughput_ratio_median": 0.912,
        "throughput_ratios": [0.9, 0.93],
        "added_ttft_ms": {"p50": 7.25, "p90": 9.0, "p99": 12.0},
        **{f"{side}_tokens_per_s": [100.0, 90.0] for side in sides},
        **{f"{side}_ttft_ms": {"p50": 60.0, "p90": 61.0, "p99": 62.0} for side in sides},
    }
    page = "before\n<!-- begin overhead -->\nold\n<!-- end overhead -->\nafter\n"
    filled = render.render(page, {"overhead": envelope("overhead", result)})
    assert "x 0.912" in filled
    assert "+7.2" in filled
    assert "old" not in filled
    assert filled.startswith("before\n")
    assert filled.endswith("after\n")
    assert render.render(filled, {"overhead": envelope("overhead", result)}) == filled
    with pytest.raises(ValueError, match="begin overhead"):
        render.render("no markers", {"overhead": envelope("overhead", result)})


def test_every_benchmark_that_all_runs_has_a_place_and_a_form_on_the_page() -> None:
    page = render.DOCUMENT.read_text()
    for name in every.NAMES:
        assert name in render.RENDERERS
        assert f"<!-- begin {name} -->" in page


def test_the_planners_goals_are_compared_with_what_was_measured() -> None:
    times = {"n": 300, "p50_ms": 1.0, "p99_ms": 4.5, "max_ms": 9.0}
    result: dict[str, object] = {
        "admission slos": {"4 tiers, 100+10": {**times, "accepted_mean": 7.0, "labels_max": 9.0}},
        "step": {"64": times},
        "labels": {
            "4 tiers, 100+10": {
                "share_of_unlimited": 0.999,
                "greedy_share_of_unlimited": 0.9,
                "ran_out": 0.25,
                "bursts": 10,
            },
        },
        "targets": {
            "admission 100+10": {"p99_ms": 4.5, "target_ms": 10.0},
            "step 64": {"p99_ms": 4.5, "target_ms": 1.0},
        },
    }
    text = render.planner(result)
    assert "| admission 100+10 | 4.500 | 10 | yes |" in text
    assert "| step 64 | 4.500 | 1 | no |" in text
    assert "| admission slos | 4 tiers, 100+10 | 300 | 1.000 | 4.500 | 9.000 |" in text
    assert "| 4 tiers, 100+10 | 10 | 99.9% | 90.0% | 25.0% |" in text


def test_the_documented_numbers_are_those_of_the_stored_results() -> None:
    text = render.DOCUMENT.read_text()
    assert render.render(text, render.stored()) == text


def test_a_result_says_how_to_make_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(given: argparse.Namespace) -> tuple[dict[str, object], dict[str, object]]:
        return {"rate": 2}, {"answer": 42}

    out = tmp_path / "deep" / "x.json"
    arguments = ["--quick", "--json", "--out", str(out)]
    assert common.main("x", "a test", measure, lambda _: None, arguments=arguments) == 0
    stored = json.loads(out.read_text())
    assert stored == json.loads(capsys.readouterr().out)
    assert stored["command"] == "slosctl bench x --quick"
    assert stored["result"] == {"answer": 42}
    assert stored["environment"]["cores"] >= 1


def test_the_planner_is_measured_in_every_case_that_has_a_goal() -> None:
    result = planner.run(rounds=3)
    assert set(result["targets"]) == set(planner.TARGETS_MS)
    assert all(found["p99_ms"] > 0 for found in result["targets"].values())
    assert result["admission slos"]["4 tiers, 500+50"]["n"] == 3
    assert "| admission slos | 4 tiers, 500+50 | 3 |" in render.planner(result)


def test_the_simulators_speed_is_that_of_a_whole_run() -> None:
    found = simulator.play("chatbot", "vllm-v1", slice_s=10.0, seed=0)
    assert found["requests"] > 50
    assert found["requests_per_minute"] == pytest.approx(60.0 * found["requests"] / found["cpu_s"], rel=0.05)
    assert found["steps_per_request"] > 1.0
    assert found["decisions_per_request"] == 0.0  # it promises to everybody, and asks nobody
    row = f"| chatbot | 2.45 | {found['requests']:,} | {found['requests_per_minute']:,} | 100,000 | 0.0 |"
    assert row in render.simulator({"chatbot": found})
