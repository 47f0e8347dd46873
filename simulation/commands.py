"""Commands of `python -m simulation`, which `slosctl simulate` and `slosctl capacity` start."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from scheduling import registry
from simulation import capacity as search
from simulation import plots, profiles, report
from simulation.cache import DEFAULT_DIR, ResultCache
from simulation.capacity import Capacity, Goal, Scoring
from simulation.config import ClusterConfig, Failure, Lengths
from simulation.parallel import cores, run_all
from simulation.results import write_requests
from simulation.run import RunSpec, run
from simulation.scenarios.catalog import SCENARIOS
from simulation.scenarios.public_data import DataError
from simulation.scenarios.sources import SLICE_S, Part

Command = Callable[..., None]


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    return lambda command: reduce(lambda inner, decorate: decorate(inner), reversed(decorators), command)


_cell = _options(
    click.option("--scenario", type=click.Choice(list(SCENARIOS)), default="chatbot", show_default=True),
    click.option("--policy", type=click.Choice(registry.names()), default=registry.DEFAULT_POLICY, show_default=True),
    click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Setting of the policy."),
    click.option("--routing", help="Routing policy in place of the policy's own."),
    click.option("--profile", default="a100-opt-13b-kv", show_default=True, help="Name, or file of slosctl profile."),
    click.option("--replicas", type=click.IntRange(1), default=1, show_default=True),
    click.option("--prefill", type=click.IntRange(0), default=0, help="Of the replicas, how many only prefill."),
    click.option("--both", type=click.IntRange(0), default=0, help="Beside --prefill: how many do both."),
    click.option(
        "--data", type=click.Path(exists=True, file_okay=False), help="Folder with the public workload files."
    ),
    click.option("--part", type=click.Choice([p.value for p in Part]), default=Part.REPORT.value, show_default=True),
    click.option("--slice", "slice_s", type=click.FloatRange(10, SLICE_S), default=SLICE_S, show_default=True),
    click.option("--lengths", type=click.Choice([v.value for v in Lengths]), default=Lengths.QUANTILE.value),
    click.option("--noise", type=click.FloatRange(0, 0.5), default=0.0, help="Relative noise of true step times."),
    click.option("--margin", type=click.FloatRange(1), default=1.0, help="Factor on the planner's predictions."),
    click.option(
        "--learn-margin", is_flag=True, help="Learn the margin from steps and promises, as the controller does."
    ),
    click.option("--time-error", type=click.FloatRange(-0.9), default=0.0, help="The planner's model is off by this."),
    click.option("--prefix-cache", is_flag=True, help="Keep the KV of finished rounds of a session."),
    click.option("--speculation", is_flag=True, help="Verify drafts where the profile has a drafter."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)


@click.group()
def main() -> None:
    """The planner that runs in the controller and the engines, on virtual time."""


@main.command()
@_cell
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Sessions/s per GPU; default: an estimate.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--fail", "failures", multiple=True, metavar="REPLICA@SECOND+SECONDS", help="Let a replica die.")
@click.option("--requests", type=click.Path(dir_okay=False), help="Write one row per request (.csv or .parquet).")
@click.option("--plot", type=click.Path(dir_okay=False), help="Write a timeline (.png, .svg, .pdf).")
def simulate(
    rate: float | None,
    seed: int,
    failures: tuple[str, ...],
    requests: str | None,
    plot: str | None,
    as_json: bool,
    **cell: Any,
) -> None:
    """Run one simulation and print its figures."""
    spec = _spec(cell).with_seed(seed)
    spec = replace(spec, cluster=_checked(lambda: replace(spec.cluster, failures=tuple(map(_failure, failures)))))
    spec = spec.at_rate(_checked(lambda: rate if rate else search.estimate(spec)))
    summary, table = _checked(lambda: run(spec))
    if requests:
        write_requests(table, Path(requests))
    if plot:
        plots.timeline(table, summary, Path(plot))
    if as_json:
        click.echo(json.dumps(summary.to_dict()))
    else:
        report.print_run(summary, Console())


@dataclass(frozen=True, slots=True)
class _Search:
    spec: RunSpec
    goal: Goal
    tolerance: float
    start: float | None
    cache: str


def _search(job: _Search) -> Capacity:
    return search.find(job.spec, job.goal, ResultCache(Path(job.cache)), job.start, job.tolerance)


@main.command()
@_cell
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Searches with different draws.")
@click.option("--attainment", type=click.FloatRange(0.01, 1), multiple=True, default=(0.9, 0.99), show_default=True)
@click.option("--scoring", type=click.Choice([s.value for s in Scoring]), multiple=True, default=("strict", "paper"))
@click.option("--tolerance", type=click.FloatRange(0.005, 0.5), default=search.TOLERANCE, show_default=True)
@click.option("--start", type=float, help="Rate per GPU to look around first.")
@click.option("--processes", type=click.IntRange(1), default=cores, show_default="all cores")
@click.option("--cache", type=click.Path(file_okay=False), default=str(DEFAULT_DIR), show_default=True)
def capacity(
    seeds: int,
    attainment: tuple[float, ...],
    scoring: tuple[str, ...],
    tolerance: float,
    start: float | None,
    processes: int,
    cache: str,
    as_json: bool,
    **cell: Any,
) -> None:
    """Search the highest rate per GPU that keeps the SLOs; interrupted searches go on where they stopped."""
    spec = _spec(cell)
    goals = [Goal(share, Scoring(name)) for share in attainment for name in scoring]
    jobs = [_Search(spec.with_seed(s), goal, tolerance, start, cache) for goal in goals for s in range(seeds)]
    found = _checked(
        lambda: run_all(
            _search,
            jobs,
            "capacity",
            lambda job: f"{job.goal.attainment:.0%} {job.goal.scoring} seed {job.spec.cluster.seed}",
            processes,
            quiet=as_json,
        )
    )
    rows = []
    for index, goal in enumerate(goals):
        rates = [c.rate_per_gpu for c in found[index * seeds : (index + 1) * seeds]]
        middle, half = interval(rates)
        rows.append(
            {
                "attainment": goal.attainment,
                "scoring": goal.scoring.value,
                "rate_per_gpu": middle,
                "half_width_95": half,
                "rates": rates,
                "precision": [c.at.precision if c.at else None for c in found[index * seeds : (index + 1) * seeds]],
                "runs": sum(c.runs for c in found[index * seeds : (index + 1) * seeds]),
            }
        )
    if as_json:
        click.echo(json.dumps({"spec": report.describe(spec), "tolerance": tolerance, "capacity": rows}))
    else:
        report.print_capacity(spec, rows, Console())


def interval(values: list[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95 % confidence interval (Student); None with a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    quantiles = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
    quantile = quantiles[min(len(values) - 2, len(quantiles) - 1)]
    return mean, quantile * statistics.stdev(values) / len(values) ** 0.5


@main.command("profiles")
def list_profiles() -> None:
    """List hardware profiles with the provenance of their numbers."""
    report.print_profiles([profiles.load(name) for name in profiles.names()], Console())


@main.command("scenarios")
def list_scenarios() -> None:
    """List scenarios and the public files that they draw from."""
    report.print_scenarios(Console())


def _spec(cell: dict[str, Any]) -> RunSpec:
    def build() -> RunSpec:
        cluster = ClusterConfig(
            policy=cell["policy"],
            policy_options=tuple(map(_option, cell["options"])),
            routing=cell["routing"],
            replicas=cell["replicas"],
            prefill_replicas=cell["prefill"],
            colocated_replicas=cell["both"],
            lengths=Lengths(cell["lengths"]),
            noise=cell["noise"],
            margin=cell["margin"],
            learn_margin=cell["learn_margin"],
            time_error=cell["time_error"],
            prefix_cache=cell["prefix_cache"],
            speculation=cell["speculation"],
        )
        profiles.load(cell["profile"])
        registry.get(cluster.policy, routing=cluster.routing, **dict(cluster.policy_options))
        return RunSpec(
            cell["scenario"], cell["profile"], 1.0, cluster, Part(cell["part"]), cell["data"], cell["slice_s"]
        )

    return _checked(build)


def _checked(work: Callable[[], Any]) -> Any:
    """Errors a user can act on, without a traceback."""
    try:
        return work()
    except (DataError, ValueError, TypeError) as error:
        raise click.ClickException(str(error)) from error


def _option(text: str) -> tuple[str, object]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ValueError(f"--option {text!r}: write NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _failure(text: str) -> Failure:
    try:
        replica, _, rest = text.partition("@")
        at, _, down = rest.partition("+")
        return Failure(int(replica), float(at), float(down) if down else float("inf"))
    except ValueError:
        raise ValueError(f"--fail {text!r}: write REPLICA@SECOND+SECONDS, for example 0@60+30") from None
