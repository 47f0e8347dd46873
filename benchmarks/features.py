"""Speculation on and off under bursts of chat, prefix cache on and off for tool-calling sessions, on the real engine.

Same requests and same seeds on either side, in one run, planned by `slos`. Rates are fixed: how much speculation and
prefix cache carry is a question of load. Answers of chats are long here, as far as a CPU lets them be: a lookup drafter
finds little to propose in the first tokens of an answer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import common, slo, sweep

DRAFT_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Switched:
    """A feature: load to see it by, and arguments of `slosctl up` without it and with it.

    longer: lengths of prompts and answers, in those of the other sweeps.
    """

    scenario: str
    rates_per_s: tuple[float, ...]
    sides: Mapping[str, tuple[str, ...]]
    longer: float = 1.0


SWITCHED = {
    "speculation": Switched(
        "chatbot",
        (0.2, 0.4),
        {"plain": (), "speculation": (f"--worker-option=--spec-tokens={DRAFT_TOKENS}",)},
        longer=4.0,
    ),
    "prefix cache": Switched(
        "tool-calling",
        (0.2, 0.4),
        {"no prefix cache": ("--worker-option=--no-prefix-caching",), "prefix cache": ()},
    ),
}


def measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """A sweep per feature, without it and with it."""
    found = {}
    for feature, switched in SWITCHED.items():
        arguments: dict[str, Sequence[str]] = {
            side: ("--engine", given.engine, *sweep.policy_arguments("slos"), *more)
            for side, more in switched.sides.items()
        }
        load = slo.workload(given, switched.scenario)
        load = replace(load, length_scale=switched.longer * load.length_scale)
        found[feature] = sweep.run(arguments, load, given.rates or switched.rates_per_s, given.quick)
    longer = {feature: switched.longer for feature, switched in SWITCHED.items()}
    return {**slo.settings(given), "draft_tokens": DRAFT_TOKENS, "longer": longer}, found


def show(whole: common.Result) -> None:
    """Print both sweeps."""
    for feature, found in whole["result"].items():
        print(f"\n{feature}")
        slo.show({"result": found})


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    slo.add_arguments(parser, scenario=False)


if __name__ == "__main__":
    sys.exit(common.main("features", __doc__, measure, show, _add_arguments))
