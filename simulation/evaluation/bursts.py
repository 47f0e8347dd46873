"""The burst timeline: one bursty slice, the same for every policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from simulation.cache import origin
from simulation.evaluation import figures
from simulation.evaluation.jobs import Effort, Figures, Search
from simulation.evaluation.numbers import capacity_table
from simulation.evaluation.sections import Scope
from simulation.parallel import run_all
from simulation.run import RunSpec, run

POLICIES = ("vllm-v1", "qoserve", "slos")


def burst_figure(scope: Scope, effort: Effort, capacities: Sequence[Figures], path: Path) -> list[Figures]:
    """Run the coding scenario at the capacity of slos with each policy; draws the figure, returns the figures."""
    profile = scope.profiles[0]
    cell = capacity_table(capacities, profile, 1).get("coding", {})
    rate = cell.get("slos") or max(cell.values(), default=1.0)
    specs = [Search(policy, profile, "coding").spec(effort).at_rate(rate) for policy in POLICIES]
    results = run_all(run, specs, "burst", _name, effort.processes, effort.quiet)
    tables = {spec.cluster.policy: table for spec, (_, table) in zip(specs, results, strict=True)}
    figures.burst(tables, rate, path)
    return [
        {
            "policy": summary.policy,
            "scenario": "coding",
            "slice_s": effort.slice_s,
            "tolerance": effort.tolerance,
            "public_data": bool(effort.data),
            "rate_per_gpu": rate,
            "attained": summary.attained,
            "ttft_ms": summary.ttft_ms,
            "tpot_ms": summary.tpot_ms,
            "best_effort_ttft_ms": summary.best_effort_ttft_ms,
            "made_of": asdict(origin(spec)),
        }
        for spec, (summary, _) in zip(specs, results, strict=True)
    ]


def _name(spec: RunSpec) -> str:
    return spec.cluster.policy
