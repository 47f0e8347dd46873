"""Policies on the real cluster: attainment against rate, same engine, same requests, same seeds, in one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import common, slo, sweep

POLICIES = ("slos", "dp", "vllm-v1", "sarathi", "qoserve")


def measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run every policy over all rates and rank them by mean attainment."""
    names = given.policies.split(",")
    policies: dict[str, Sequence[str]] = {
        name: ("--engine", given.engine, *sweep.policy_arguments(name)) for name in names
    }
    result = sweep.run(policies, slo.workload(given), given.rates, given.quick)
    result["mean_attainment"] = mean_attainment(result["rows"])
    return {**slo.settings(given), "policies": names}, result


def mean_attainment(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean over the rates of each policy's attainment, best first."""
    totals: dict[str, list[float]] = {}
    for row in rows:
        total = next(c for c in row["classes"] if c["application"] == "all")
        totals.setdefault(row["policy"], []).append(total["attainment"])
    means = {policy: sum(values) / len(values) for policy, values in totals.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def show(whole: common.Result) -> None:
    """Print the rows and the ranking."""
    slo.show(whole)
    for policy, mean in whole["result"]["mean_attainment"].items():
        print(f"{policy:>10}  {mean:.1%} of sessions attained, mean over the rates")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    slo.add_arguments(parser)
    parser.add_argument("--policies", default=",".join(POLICIES), help="names separated by commas")


if __name__ == "__main__":
    sys.exit(common.main("policies", __doc__, measure, show, _add_arguments))
