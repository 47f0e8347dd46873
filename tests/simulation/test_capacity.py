"""The search for capacity, its cache, and the commands around it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from simulation import capacity
from simulation.cache import ResultCache, key
from simulation.capacity import Goal, Scoring
from simulation.commands import interval, main
from simulation.config import ClusterConfig
from simulation.results import Summary
from simulation.run import RunSpec, run

SPEC = RunSpec("chatbot", "a100-opt-7b", 1.0, ClusterConfig("vllm-v1"), slice_s=20.0)


class CountingCache(ResultCache):
    """A cache of a made-up system that keeps everything up to a rate, and counts how often it is asked."""

    def __init__(self, folder: Path, template: Summary, limit: float) -> None:
        super().__init__(folder)
        self.template, self.limit, self.rates = template, limit, []

    def summary(self, spec: RunSpec) -> Summary:
        self.rates.append(spec.rate_per_gpu)
        return replace(self.template, attained=0.95 if spec.rate_per_gpu <= self.limit else 0.5, stopped_early=False)


@pytest.fixture(scope="module")
def template() -> Summary:
    return run(SPEC)[0]


@pytest.mark.parametrize("limit", [0.013, 0.9, 1.0, 7.3, 480.0])
@pytest.mark.parametrize("start", [None, 0.1, 10.0])
@pytest.mark.parametrize("tolerance", [0.01, 0.1])
def test_the_search_finds_the_limit(
    limit: float, start: float | None, tolerance: float, template: Summary, tmp_path: Path
) -> None:
    cache = CountingCache(tmp_path, template, limit)
    found = capacity.find(SPEC, Goal(), cache, start, tolerance)
    assert limit / (1.0 + tolerance) * 0.999 <= found.rate_per_gpu <= limit
    assert found.at is not None
    assert found.runs == len(cache.rates) == len(set(cache.rates))


def test_a_goal_that_no_rate_meets_has_no_capacity(template: Summary, tmp_path: Path) -> None:
    found = capacity.find(SPEC, Goal(), CountingCache(tmp_path, template, 0.0), tolerance=0.2)
    assert found.rate_per_gpu == 0.0
    assert found.at is None


def test_a_run_that_was_stopped_has_not_met_its_goal(template: Summary) -> None:
    good = replace(template, attained=0.95, attained_paper=0.99, stopped_early=False)
    assert Goal(0.9).met(good)
    assert not Goal(0.99).met(good)
    assert Goal(0.99, Scoring.PAPER).met(good)
    assert not Goal(0.9).met(replace(good, stopped_early=True))


def test_stopping_early_changes_no_verdict() -> None:
    rates = (2.0, 4.0, 8.0, 16.0)
    goal = Goal(0.9)
    verdicts = [goal.met(run(SPEC.at_rate(rate))[0]) for rate in rates]
    stopping = capacity.stopping(SPEC, goal)
    assert [goal.met(run(stopping.at_rate(rate))[0]) for rate in rates] == verdicts
    assert run(stopping.at_rate(40.0))[0].stopped_early


def test_a_known_result_is_not_computed_again(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    first = cache.summary(SPEC)
    (path,) = tmp_path.iterdir()
    changed = json.loads(path.read_text())
    changed["attained"] = 0.123
    path.write_text(json.dumps(changed))
    assert cache.summary(SPEC) == replace(first, attained=0.123)


def test_the_key_holds_all_that_matters() -> None:
    others = [
        SPEC.at_rate(2.0),
        SPEC.with_seed(1),
        replace(SPEC, scenario="coding"),
        replace(SPEC, profile="a100-opt-13b-kv"),
        replace(SPEC, slice_s=30.0),
        replace(SPEC, cluster=ClusterConfig("sarathi")),
        replace(SPEC, cluster=ClusterConfig("vllm-v1", (("token_budget", 512),))),
    ]
    assert len({key(spec) for spec in (SPEC, *others)}) == 1 + len(others)
    assert key(SPEC) == key(replace(SPEC))


def test_simulate_writes_figures_requests_and_a_timeline(tmp_path: Path) -> None:
    arguments = ["simulate", "--policy", "vllm-v1", "--slice", "15", "--rate", "2", "--seed", "3"]
    for name in ("requests.csv", "requests.parquet"):
        files = ["--requests", str(tmp_path / name), "--plot", str(tmp_path / "timeline.png")]
        result = CliRunner().invoke(main, [*arguments, *files, "--json"])
        assert result.exit_code == 0, result.output
    figures = json.loads(result.output)
    for table in (pd.read_csv(tmp_path / "requests.csv"), pd.read_parquet(tmp_path / "requests.parquet")):
        assert len(table) == figures["requests"]
        assert table["attained"].mean() == pytest.approx(figures["attained"])
        assert (table["ttft_s"] > 0).all()
    assert (tmp_path / "timeline.png").stat().st_size > 10_000
    shown = CliRunner().invoke(main, arguments)
    assert "simulated" in shown.output
    assert "chatbot" in shown.output


def test_capacity_prints_rates_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    arguments = ["capacity", "--policy", "vllm-v1", "--slice", "15", "--tolerance", "0.3", "--processes", "1"]
    arguments += ["--attainment", "0.9", "--scoring", "strict", "--seeds", "2", "--cache", str(tmp_path), "--json"]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    (row,) = json.loads(first.output)["capacity"]
    assert row["rate_per_gpu"] > 0
    assert len(row["rates"]) == 2
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = CliRunner().invoke(main, arguments)
    assert json.loads(again.output) == json.loads(first.output)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "a100"], "unknown profile 'a100'"),
        (["--option", "nonsense"], "write NAME=VALUE"),
        (["--option", "foo=1"], "foo"),
        (["--fail", "3@1+1"], "there are 1"),
        (["--fail", "soon"], "write REPLICA@SECOND"),
        (["--prefill", "1"], "must leave a replica to decode"),
        (["--routing", "magic"], "unknown routing policy"),
        (["--scenario", "chess"], "chatbot"),
    ],
)
def test_bad_input_is_named(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["simulate", "--slice", "15", *arguments])
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output


def test_lists(tmp_path: Path) -> None:
    assert "a100-opt-13b-kv"[:8] in CliRunner().invoke(main, ["profiles"]).output
    assert "tool-calling" in CliRunner().invoke(main, ["scenarios"]).output


def test_the_confidence_interval_is_students() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.30 / 3**0.5)
    assert interval([5.0]) == (5.0, None)
