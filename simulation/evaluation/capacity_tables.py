"""The tables of capacities: per scenario and policy, ratios, geometric means, and what the engines did there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulation.evaluation import figures
from simulation.evaluation.numbers import NO_SLO_BASELINES, Table, capacity_table, over, ratios, spread
from simulation.evaluation.sections import BASELINES, OURS, THREE_SEEDS, Scope
from simulation.scenarios.catalog import PAPER_SCENARIOS

Rows = Sequence[dict[str, Any]]
POLICIES = (*BASELINES, *OURS)
COLOCATED = tuple(p for p in NO_SLO_BASELINES if p != "distserve")
NOT_RUN = "not run"
FIVE = tuple(s for s in PAPER_SCENARIOS if s != "tool-calling")


def capacity_section(rows: Rows, out: Path) -> str:
    """A table, its ratios, a figure and the engine's side for every profile and size."""
    text = ["## Capacity at 90 %, strict\n"]
    for profile in dict.fromkeys(r["profile"] for r in rows):
        for replicas in sorted({r["asked_replicas"] for r in rows if r["profile"] == profile}):
            text.append(one_table(rows, profile, replicas))
            name = f"capacity-{profile}-{replicas}.svg"
            figures.capacity_bars(rows, profile, replicas, out / "figures" / name)
            text.append(f"![capacity](figures/{name})\n")
            text.append(_engine_table(rows, profile, replicas))
    return "\n".join(text)


def capacity_missing(rows: Rows) -> list[str]:
    """Parts of the full grid that hold no row, or not all of the first seed's, and seeds that are still single."""
    grid = Scope()
    cells = {(r["profile"], r["asked_replicas"], r["policy"], r["scenario"]) for r in rows if r["seed"] == 0}
    seen = {(r["profile"], r["asked_replicas"]) for r in rows}
    missing = [
        f"* capacity on {profile} at {replicas} replica{'s' if replicas > 1 else ''}"
        f" (`--only capacity --profile {profile} --replicas {replicas}`)"
        for profile in grid.profiles
        for replicas in grid.replicas
        if (profile, replicas) not in seen
    ]
    for profile, replicas in sorted(seen):
        lacking = sum((profile, replicas, p, s) not in cells for p in grid.policies for s in grid.scenarios)
        if lacking:
            whole = len(grid.policies) * len(grid.scenarios)
            missing.append(
                f"* {lacking} of {whole} cells of {profile}, {replicas} replica{'s' if replicas > 1 else ''}"
            )
    if rows and all(r["seed"] == 0 for r in rows):
        missing.append(f"* capacity over three seeds on {' and '.join(THREE_SEEDS)} (`--only capacity`)")
    return missing


def one_table(rows: Rows, profile: str, replicas: int) -> str:
    """Capacities of one profile and size, and their ratios."""
    return f"### {profile}, {replicas} replica{'s' if replicas > 1 else ''}\n\n" + table_and_ratios(
        rows, profile, replicas
    )


def table_and_ratios(rows: Rows, profile: str, replicas: int | None, sizes: dict[str, int] | None = None) -> str:
    """Capacities, ratios and geometric means; sizes: GPUs by scenario, where they differ (replicas is None then)."""
    table = capacity_table(rows, profile, replicas)
    text = [
        "Sessions per second and GPU; in brackets the range over seeds; \\*: default configuration, not tuned.\n",
        *_head("scenario"),
    ]

    def named(scenario: str) -> str:
        return f"{scenario} ({sizes[scenario]})" if sizes and scenario in sizes else scenario

    for scenario in dict.fromkeys((*PAPER_SCENARIOS, *table)):
        cell = table.get(scenario, {})
        values = []
        for policy in POLICIES:
            limits = spread(rows, profile, policy, scenario) if replicas == 1 else None
            between = f" ({limits[0]:.2f}-{limits[1]:.2f})" if limits else ""
            untuned = "" if policy not in BASELINES or _tuned(rows, profile, policy, scenario) else " \\*"
            values.append(f"{cell[policy]:.3f}{between}{untuned}" if policy in cell else NOT_RUN)
        text.append(line([named(scenario), *values]))
    text.append(f"\nOver the best of {', '.join(NO_SLO_BASELINES)} (of those that were run):\n")
    text += _head("scenario")
    for scenario in (s for s in dict.fromkeys((*PAPER_SCENARIOS, *table)) if s in table):
        cell = table[scenario]
        text.append(line([named(scenario), *(ratio(ratios(cell).get(p, math.nan)) for p in POLICIES)]))
    means_of = []
    for base, others in (
        ("best of the four", NO_SLO_BASELINES),
        ("best co-located of the four", COLOCATED),
        ("qoserve", ("qoserve",)),
    ):
        for scenarios in _sets(table):
            means = [over(table, p, others, scenarios) for p in POLICIES]
            if not all(map(math.isnan, means)):
                means_of.append(line([f"{base}, {_named(scenarios)}", *map(ratio, means)]))
    if means_of:
        text.append("\nGeometric means (a mean stands only where every one of its cells was run):\n")
        text += [*_head("over, of"), *means_of]
    return "\n".join(text) + "\n"


def _sets(table: Table) -> list[tuple[str, ...]]:
    """The paper's six, without tool-calling, and those that slos and all baselines have so far."""
    done = tuple(s for s in PAPER_SCENARIOS if {*BASELINES, "slos"} <= table.get(s, {}).keys())
    return list(dict.fromkeys(s for s in (PAPER_SCENARIOS, FIVE, done) if s))


def _named(scenarios: tuple[str, ...]) -> str:
    if scenarios == PAPER_SCENARIOS:
        return "six"
    return "five, without tool-calling" if scenarios == FIVE else ", ".join(scenarios)


def _engine_table(rows: Rows, profile: str, replicas: int) -> str:
    """What the engines did at capacity: it tells why a policy is where it is."""
    title = "At capacity: share of time busy / new tokens per step / share of prompt tokens computed again\n"
    text = [title, *_head("scenario")]
    cells = {
        (r["scenario"], r["policy"]): r
        for r in rows
        if (r["profile"], r["asked_replicas"], r["seed"]) == (profile, replicas, 0) and r.get("busy") is not None
    }
    if not cells:
        return ""
    for scenario in dict.fromkeys(s for s, _ in cells):
        values = []
        for policy in POLICIES:
            row = cells.get((scenario, policy))
            figures_of = f"{row['busy']:.0%} / {row['tokens_per_step']:.0f} / {row['rebuilt']:.1%}" if row else "-"
            values.append(figures_of)
        text.append(line([scenario, *values]))
    return "\n".join(text) + "\n"


def _head(first: str) -> list[str]:
    return [line([first, *POLICIES]), line(["---"] * (len(POLICIES) + 1))]


def _tuned(rows: Rows, profile: str, policy: str, scenario: str) -> bool:
    return all(
        r.get("tuned", True) for r in rows if (r["profile"], r["policy"], r["scenario"]) == (profile, policy, scenario)
    )


def line(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


def ratio(value: float) -> str:
    """A factor, as text."""
    return "-" if math.isnan(value) else f"{value:.2f}x"


def quotient(value: float | None, base: float | None) -> float:
    """Value over base; NaN when either is missing or zero."""
    return value / base if value and base else math.nan
