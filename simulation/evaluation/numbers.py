"""From figures of single searches to tables, ratios and geometric means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
Table = dict[str, dict[str, float]]
"""Scenario -> policy -> sessions per second and GPU (mean over seeds)."""

NO_SLO_BASELINES = ("vllm", "vllm-v1", "sarathi", "distserve")


def capacity_table(rows: Rows, profile: str, replicas: int | None) -> Table:
    """Capacities of one profile and size; None: of rows whose size is the scenario's own."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["profile"] == profile and replicas in (None, row["asked_replicas"]):
            values.setdefault(row["scenario"], {}).setdefault(row["policy"], []).append(row["rate_per_gpu"])
    return {s: {p: statistics.fmean(rates) for p, rates in of.items()} for s, of in values.items()}


def best_of(cell: Mapping[str, float], policies: Iterable[str] = NO_SLO_BASELINES) -> float:
    """The highest capacity among these policies; 0 when none was computed."""
    return max((cell[p] for p in policies if p in cell), default=0.0)


def ratios(cell: Mapping[str, float]) -> dict[str, float]:
    """Every policy over the best baseline that knows no SLOs."""
    best = best_of(cell)
    return {policy: rate / best if best else math.nan for policy, rate in cell.items()}


def geometric_mean(values: Iterable[float]) -> float:
    """NaN when there is no value, or one that is not positive."""
    logs = [math.log(value) if value > 0 else math.nan for value in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


def over(table: Table, policy: str, others: Iterable[str], scenarios: Iterable[str]) -> float:
    """Geometric mean of a policy's capacity over the best of others; NaN when a cell is missing or zero."""
    others = tuple(others)
    quotients = []
    for scenario in scenarios:
        cell = table.get(scenario, {})
        best = best_of(cell, others)
        quotients.append(cell.get(policy, math.nan) / best if best else math.nan)
    return geometric_mean(quotients)


def spread(rows: Rows, profile: str, policy: str, scenario: str) -> tuple[float, float] | None:
    """Lowest and highest capacity over seeds at one replica; None with a single seed."""
    rates = [
        row["rate_per_gpu"]
        for row in rows
        if (row["profile"], row["policy"], row["scenario"], row["asked_replicas"]) == (profile, policy, scenario, 1)
    ]
    return (min(rates), max(rates)) if len(rates) > 1 else None
