"""Promises under load on the real model: this project's planner against vLLM's own scheduler.

Same engine, same requests, same seeds, in one run; vLLM's scheduler admits everything, and its requests are scored
against the same SLOs. Rates lie around the estimated knee.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks import common, sweep

STOCK = ("--policy", "vllm-v1", "--worker-option=--policy=stock")
"""Admit everything, and leave the batches to vLLM's own scheduler."""


def workload(given: argparse.Namespace, scenario: str = "") -> sweep.Workload:
    """What the arguments ask for; scenario: in place of theirs."""
    duration_s = min(given.duration, 20.0) if given.quick else given.duration
    scenario = scenario or given.scenario
    return sweep.Workload(
        scenario, given.arrivals, duration_s, given.length_scale, given.delay_scale, given.seed, given.timeout
    )


def add_arguments(parser: argparse.ArgumentParser, scenario: bool = True) -> None:
    """Options of a sweep; scenario: whether there is a choice of it."""
    if scenario:
        parser.add_argument("--scenario", default="mixed")
    parser.add_argument("--arrivals", default="burst", choices=("poisson", "burst", "trace"))
    parser.add_argument("--duration", type=float, default=90.0, help="seconds per rate")
    parser.add_argument("--rates", type=rates, default=None, help="sessions/s, such as 0.5,1,2 (default: by the knee)")
    parser.add_argument("--length-scale", type=float, default=0.1, help="lengths of the scenario times this")
    parser.add_argument("--delay-scale", type=float, default=0.2, help="tool times of the scenario times this")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--timeout", type=float, default=300.0, help="longest time for one request, seconds")
    parser.add_argument("--engine", default="vllm", choices=("vllm", "emulated"))


def rates(value: str) -> list[float]:
    """Rates from the command line."""
    try:
        found = [float(part) for part in value.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers separated by commas, not {value!r}") from None
    if not found or min(found) <= 0:
        raise argparse.ArgumentTypeError("rates must be positive")
    return found


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """What to store of the arguments."""
    names = ("scenario", "arrivals", "duration", "length_scale", "delay_scale", "seed", "engine")
    return {name: value for name, value in vars(given).items() if name in names}


def measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run both policies over all rates."""
    engine = ("--engine", given.engine)
    stock = STOCK if given.engine == "vllm" else sweep.policy_arguments("vllm-v1")
    policies: dict[str, Sequence[str]] = {
        "slos": (*engine, *sweep.policy_arguments("slos")),
        "vllm": (*engine, *stock),
    }
    return settings(given), sweep.run(policies, workload(given), given.rates, given.quick)


def show(whole: common.Result) -> None:
    """Print one row per policy and rate."""
    table = Table(
        *("policy", "sessions/s", "attained", "promised", "precision", "TTFT p50", "p99", "TPOT p50", "p99"),
        *("margin", "step error p99"),
        title="Attainment against rate",
        title_justify="left",
    )
    for row in whole["result"]["rows"]:
        total = next(c for c in row["classes"] if c["application"] == "all")
        error = row["step_time_measured_over_predicted"]["p99"]
        table.add_row(
            row["policy"],
            f"{row['rate_per_s']:g}",
            _percent(total["attainment"]),
            str(total["promised"]),
            _percent(total["guarantee_precision"]),
            *(_ms(total[name]) for name in ("ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms")),
            "-" if row["margin"] is None else f"{row['margin']:.2f}",
            "-" if error is None else f"x {error:.2f}",
        )
    common.console().print(table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(common.main("slo", __doc__, measure, show, add_arguments))
