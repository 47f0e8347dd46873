"""Figures of docs/evaluation.md (matplotlib, SVG)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulation.evaluation.numbers import capacity_table, ratios
from simulation.evaluation.sections import BASELINES, OURS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Rows = Sequence[dict[str, Any]]
BIN_S = 10.0
COLOURS = {
    "vllm": "#9e9e9e", "vllm-v1": "#616161", "sarathi": "#a1887f", "distserve": "#90a4ae", "qoserve": "#5c6bc0",
    "dp": "#ffb74d", "edf-exact": "#ef6c00", "slos": "#c62828",
}  # fmt: skip


def capacity_bars(rows: Rows, profile: str, replicas: int, path: Path) -> None:
    """Capacity per GPU by scenario and policy, relative to the best baseline without SLOs."""
    table = capacity_table(rows, profile, replicas)
    scenarios, policies = list(table), [p for p in (*BASELINES, *OURS) if any(p in table[s] for s in table)]
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(10, 3.6), layout="constrained")
    width = 0.8 / max(1, len(policies))
    for number, policy in enumerate(policies):
        heights = [ratios(table[s]).get(policy, 0.0) for s in scenarios]
        axis.bar(np.arange(len(scenarios)) + number * width, heights, width, label=policy, color=COLOURS[policy])
    axis.axhline(1.0, color="black", lw=0.7)
    axis.set_xticks(np.arange(len(scenarios)) + 0.4 - width / 2, scenarios)
    axis.set_ylabel("capacity / best of vllm, vllm-v1,\nsarathi, distserve")
    axis.legend(ncols=len(policies), loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False, fontsize=8)
    axis.set_title(f"{profile}, {replicas} replica{'s' if replicas > 1 else ''} (simulated)")
    _save(figure, path)


def burst(tables: dict[str, pd.DataFrame], rate: float, path: Path) -> None:
    """Arrivals, p99 latencies and misses of a bursty slice, one line per policy."""
    plt = _pyplot()
    figure, axes = plt.subplots(4, 1, figsize=(10, 8), sharex=True, layout="constrained")
    for name, table in tables.items():
        start = np.floor(table["arrival_s"] / BIN_S) * BIN_S
        bins = table.assign(start=start).groupby("start")
        if name == next(iter(tables)):
            axes[0].step(bins.size().index, bins.size() / BIN_S, where="post", color="black", lw=0.8)
        finite = table[np.isfinite(table["ttft_s"])].assign(start=start).groupby("start")
        axes[1].plot(finite["ttft_s"].quantile(0.99), label=name, color=COLOURS[name], lw=1)
        axes[2].plot(finite["mean_tpot_s"].quantile(0.99) * 1e3, color=COLOURS[name], lw=1)
        missed = bins["attained"].apply(lambda kept: 100 * float((~kept).mean()))
        axes[3].step(missed.index, missed, where="post", color=COLOURS[name], lw=1)
    for axis, label in zip(axes, ("requests/s", "TTFT p99, s", "TPOT p99, ms", "missed, %"), strict=True):
        axis.set_ylabel(label)
    axes[1].set_yscale("log")
    axes[1].legend(ncols=len(tables), frameon=False, fontsize=8)
    axes[3].set_xlabel("time of arrival, s")
    figure.suptitle(f"coding at {rate:.2f} sessions/s per GPU (simulated)")
    _save(figure, path)


def lines(rows: Rows, x: str, label: str, path: Path) -> None:
    """Capacity per GPU over one column, a line per policy and scenario."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for policy, scenario in sorted({(r["policy"], r["scenario"]) for r in rows}):
        points = sorted(
            (float(r["changes"].get(x, r.get(x, 0.0))), r["rate_per_gpu"])
            for r in rows
            if (r["policy"], r["scenario"]) == (policy, scenario)
        )
        _line(axis, points, f"{policy}, {scenario}", policy, scenario)
    axis.set(xlabel=label, ylabel="sessions/s per GPU", ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _line(axis: Axes, points: list[tuple[float, float]], label: str, policy: str, scenario: str) -> None:
    style = "-" if scenario == "chatbot" else "--"
    axis.plot(
        [p[0] for p in points], [p[1] for p in points], style, marker="o", ms=3, label=label, color=COLOURS[policy]
    )


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "slos"
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    _pyplot().close(figure)
