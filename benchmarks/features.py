"""Speculation on and off under a mixed burst, prefix cache on and off for tool-calling sessions, on the real engine.

Same requests and same seeds on either side, in one run, planned by `slos`. Rates are fixed: how much speculation and
prefix cache carry is a question of load.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import common, slo, sweep

DRAFT_TOKENS = 4
SWITCHED: dict[str, tuple[str, tuple[float, ...], dict[str, tuple[str, ...]]]] = {
    "speculation": (
        "mixed",
        (0.9, 1.8),
        {"plain": (), "speculation": (f"--worker-option=--spec-tokens={DRAFT_TOKENS}",)},
    ),
    "prefix cache": (
        "tool-calling",
        (0.2, 0.4),
        {"no prefix cache": ("--worker-option=--no-prefix-caching",), "prefix cache": ()},
    ),
}
"""Feature -> scenario, sessions per second, and arguments of `slosctl up` without it and with it."""


def measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """A sweep per feature, without it and with it."""
    found = {}
    for feature, (scenario, rates, sides) in SWITCHED.items():
        arguments: dict[str, Sequence[str]] = {
            side: ("--engine", given.engine, *sweep.policy_arguments("slos"), *more) for side, more in sides.items()
        }
        load = slo.workload(given, scenario)
        found[feature] = sweep.run(arguments, load, given.rates or rates, given.quick)
    return {**slo.settings(given), "draft_tokens": DRAFT_TOKENS}, found


def show(whole: common.Result) -> None:
    """Print both sweeps."""
    for feature, found in whole["result"].items():
        print(f"\n{feature}")
        slo.show({"result": found})


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    slo.add_arguments(parser, scenario=False)


if __name__ == "__main__":
    sys.exit(common.main("features", __doc__, measure, show, _add_arguments))
