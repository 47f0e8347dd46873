"""Figures for people: tables on the console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from simulation.profiles import Profile
from simulation.results import ClassFigures, Summary
from simulation.run import RunSpec
from simulation.scenarios.catalog import SCENARIOS
from simulation.scenarios.public_data import FILES


def describe(spec: RunSpec) -> dict[str, Any]:
    """A run's description, JSON-able; whether public files were used, not where they lie."""
    described = asdict(spec)
    described["data"] = "public files" if spec.data else "fitted distributions"
    del described["rate_per_gpu"]
    return described


def print_run(summary: Summary, console: Console) -> None:
    """One simulated run."""
    console.print(
        f"[bold]{summary.policy}[/] on {summary.replicas} x {summary.profile} (simulated):"
        f" {summary.sessions} sessions, {summary.requests} requests at {summary.rate_per_s:.3f} sessions/s,"
        f" {summary.simulated_s:.0f} s"
    )
    table = Table()
    table.add_column("class")
    for column in ("requests", "attained", "paper", "promised", "kept", "TTFT ms p50/p99", "TPOT ms p50/p99"):
        table.add_column(column, justify="right")
    for c in (*summary.classes, summary):
        if c is summary:
            table.add_section()
        table.add_row(
            c.name if isinstance(c, ClassFigures) else "sessions",
            str(c.requests if isinstance(c, ClassFigures) else c.sessions),
            *(f"{share:.1%}" for share in (c.attained, c.attained_paper, c.promised, c.precision)),
            *(f"{v[0]:,.0f} / {v[-1]:,.0f}" if v else "-" for v in (c.ttft_ms, c.tpot_ms)),
        )
    console.print(table)
    console.print(
        f"busy {summary.busy:.1%}, {summary.tokens_per_step:.0f} tokens per step, {summary.preemptions} preemptions"
        f" ({summary.rebuilt:.1%} of computed prompt tokens were rebuilt)"
    )


def print_capacity(spec: RunSpec, rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Capacities of one cell."""
    console.print(
        f"[bold]{spec.cluster.policy}[/] on {spec.cluster.replicas} x {spec.profile}, scenario {spec.scenario}"
        f" ({'public files' if spec.data else 'fitted distributions'}, {spec.part} part), simulated"
    )
    table = Table()
    for column in ("attainment", "scoring", "sessions/s per GPU", "95 % interval", "kept of promised", "runs"):
        table.add_column(column, justify="right")
    for row in rows:
        half = row["half_width_95"]
        precision = [p for p in row["precision"] if p is not None]
        table.add_row(
            f"{row['attainment']:.0%}",
            row["scoring"],
            f"{row['rate_per_gpu']:.3f}",
            "one seed" if half is None else f"+- {half:.3f}",
            f"{min(precision):.1%}" if precision else "-",
            str(row["runs"]),
        )
    console.print(table)


def print_profiles(profiles: Sequence[Profile], console: Console) -> None:
    """Hardware profiles and where their numbers come from."""
    table = Table()
    for column in ("profile", "GPUs", "KV tokens", "step times", "source", "uncertainty"):
        table.add_column(column)
    for profile in profiles:
        timing = profile.provenance["time_model"]
        kv_tokens = profile.limits.total_blocks * profile.limits.block_size
        table.add_row(
            profile.name,
            f"{profile.gpus_per_replica} x {profile.gpu}",
            f"{kv_tokens:,}",
            timing.kind,
            timing.source,
            timing.uncertainty,
        )
    console.print(table)


def print_scenarios(console: Console) -> None:
    """Scenarios and the public files behind them."""
    table = Table()
    for column in ("scenario", "what", "files"):
        table.add_column(column)
    for scenario in SCENARIOS.values():
        table.add_row(scenario.name, scenario.description, "\n".join(FILES[name].path for name in scenario.files))
    console.print(table)
