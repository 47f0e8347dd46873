"""Figures of single runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from simulation.results import Summary

BIN_S = 10.0


def timeline(table: pd.DataFrame, summary: Summary, path: Path) -> None:
    """Arrivals, latencies and misses over the time of arrival; the file's ending chooses the format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    seen = table[np.isfinite(table["arrival_s"])]
    start = np.floor(seen["arrival_s"] / BIN_S) * BIN_S
    bins = seen.assign(start=start).groupby("start")
    arrivals, missed = bins.size() / BIN_S, bins["attained"].apply(lambda kept: float((~kept).mean()))
    figure, axes = plt.subplots(4, 1, figsize=(10, 9), sharex=True, layout="constrained")
    axes[0].step(arrivals.index, arrivals, where="post")
    axes[0].set_ylabel("requests/s")
    for label, share in (("p50", 0.5), ("p99", 0.99)):
        axes[1].plot(bins["ttft_s"].quantile(share), label=f"TTFT {label}")
        axes[2].plot(bins["mean_tpot_s"].quantile(share) * 1e3, label=f"TPOT {label}")
    axes[1].plot(bins["slo_ttft_s"].median(), "k:", label="SLO, median")
    axes[2].plot(bins["slo_tpot_s"].min() * 1e3, "k:", label="tightest SLO")
    axes[1].set(ylabel="TTFT, s", yscale="log")
    axes[2].set(ylabel="TPOT, ms")
    axes[3].step(missed.index, 100 * missed, where="post")
    axes[3].set(ylabel="missed, %", xlabel="time of arrival, s", ylim=(0, 100))
    for axis in axes[1:3]:
        axis.legend(loc="upper right")
    figure.suptitle(
        f"{summary.policy} on {summary.replicas} x {summary.profile}, {summary.rate_per_s:.2f} sessions/s:"
        f" {100 * summary.attained:.1f} % attained (simulated)"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
