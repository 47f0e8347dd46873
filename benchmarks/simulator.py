"""Speed of the simulator: requests that one core plays per minute, on four replicas near their capacity.

CPU time, so that neighbours count less; kernels are compiled, and the workload is built, before anything is timed. How
often replicas were asked and stepped per request says where the time goes.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from benchmarks import common
from scheduling.compile import warm_up
from simulation.config import ClusterConfig
from simulation.results import scores, summarize
from simulation.run import RunSpec, build
from simulation.scenarios.sources import SLICE_S

PROFILE = "a100-opt-13b-kv"
REPLICAS = 4
RATES_PER_GPU = {"chatbot": 2.45, "coding": 12.0, "mixed": 1.72}
"""About 0.95 of what four replicas carry under `slos` (docs/evaluation.md), sessions per second and GPU."""
TARGET_PER_MINUTE = 100_000
QUICK_SLICE_S = 60.0


def play(scenario: str, policy: str, slice_s: float, seed: int) -> dict[str, Any]:
    """Play one run on this core; ValueError for an unknown scenario or policy."""
    config = ClusterConfig(policy, replicas=REPLICAS, seed=seed)
    cluster = build(RunSpec(scenario, PROFILE, RATES_PER_GPU[scenario], config, slice_s=slice_s))
    started_s = time.process_time()
    cluster.run()
    spent_s = time.process_time() - started_s
    summary = summarize(cluster, scores(cluster))
    return {
        "rate_per_gpu": RATES_PER_GPU[scenario],
        "requests": summary.requests,
        "cpu_s": round(spent_s, 3),
        "requests_per_minute": round(60.0 * summary.requests / spent_s),
        "decisions_per_request": round(summary.decisions / summary.requests, 3),
        "steps_per_request": round(summary.steps / summary.requests, 3),
        "attained": round(summary.attained, 4),
        "target_per_minute": TARGET_PER_MINUTE,
    }


def show(whole: common.Result) -> None:
    """One line per scenario."""
    for scenario, row in whole["result"].items():
        print(
            f"{scenario:10} {row['requests_per_minute']:>9,} requests/min and core  "
            f"({row['requests']:,} requests in {row['cpu_s']:.1f} s; {row['decisions_per_request']:.2f} plans and "
            f"{row['steps_per_request']:.1f} steps per request; goal {row['target_per_minute']:,})"
        )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", default="slos", help="default: %(default)s")
    parser.add_argument("--scenario", choices=tuple(RATES_PER_GPU), help="default: all of them")
    parser.add_argument("--minutes", type=float, help="minutes of trace at rate 1; default: 20")
    parser.add_argument("--seed", type=int, default=0)


def _measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    slice_s = QUICK_SLICE_S if given.quick else SLICE_S if given.minutes is None else 60.0 * given.minutes
    names = (given.scenario,) if given.scenario else tuple(RATES_PER_GPU)
    warm_up()
    play(names[0], given.policy, QUICK_SLICE_S, given.seed)
    settings = {"profile": PROFILE, "replicas": REPLICAS, "policy": given.policy, "slice_s": slice_s}
    return settings, {name: play(name, given.policy, slice_s, given.seed) for name in names}


if __name__ == "__main__":
    sys.exit(common.main("simulator", __doc__, _measure, show, _add_arguments))
