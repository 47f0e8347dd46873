"""Search each baseline's best configuration: `python -m simulation.evaluation.tune [--data DIR]`.

Coordinate search on the tuning part of the data, never on the part that is reported: starting from the default, every
setting is tried at one step above the best rate found so far, and kept when it still meets the goal there. A cell is
written as soon as it is found; cells that tuned.json knows are left alone, unless --again asks for them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from simulation import capacity
from simulation.cache import DEFAULT_DIR, ResultCache
from simulation.capacity import Goal
from simulation.evaluation.settings import GRIDS, TUNED, Setting, candidates
from simulation.parallel import cores, run_all
from simulation.run import RunSpec
from simulation.scenarios.catalog import PAPER_SCENARIOS
from simulation.scenarios.sources import Part

SLICE_S = {"chatbot": 300.0, "summarization": 300.0, "mixed": 150.0, "reasoning": 120.0}
BURSTY_SLICE_S = 600.0
"""1,500 to 2,000 sessions, which last longer than ten minutes at one replica's capacity; bursty arrivals need more."""
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy on one profile and scenario."""

    policy: str
    profile: str
    scenario: str
    data: str | None
    cache: str

    @property
    def name(self) -> str:
        """Key in tuned.json."""
        return f"{self.policy}/{self.profile}/{self.scenario}"


def main() -> None:
    """Search all cells that are asked for, merge them into tuned.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with the public files")
    parser.add_argument("--profile", action="append", help="default: a100-opt-13b-kv and a100-opt-7b")
    parser.add_argument("--scenario", action="append", help="default: the six of the paper")
    parser.add_argument("--policy", action="append", help="default: all baselines")
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--cache", default=str(DEFAULT_DIR))
    parser.add_argument("--again", action="store_true", help="search known cells again")
    given = parser.parse_args()
    known = _known()
    cells = [
        Cell(policy, profile, scenario, given.data, given.cache)
        for profile in given.profile or ("a100-opt-13b-kv", "a100-opt-7b")
        for scenario in given.scenario or PAPER_SCENARIOS
        for policy in given.policy or GRIDS
        if given.again or f"{policy}/{profile}/{scenario}" not in known
    ]
    for start in range(0, len(cells), given.processes):
        group = cells[start : start + given.processes]
        results = run_all(best, group, f"tuning, {len(cells) - start} to go", lambda c: c.name, given.processes)
        merged = _known() | {cell.name: result for cell, result in zip(group, results, strict=True)}
        TUNED.write_text(json.dumps(dict(sorted(merged.items())), indent=1) + "\n")


def _known() -> dict[str, dict[str, object]]:
    known: dict[str, dict[str, object]] = json.loads(TUNED.read_text()) if TUNED.is_file() else {}
    return known


def best(cell: Cell) -> dict[str, object]:
    """Options, ratio and the capacity they reach on the tuning slice."""
    cache = ResultCache(Path(cell.cache))
    goal = Goal()
    ranked = _by_coordinates(candidates(cell.policy))
    chosen = ranked[0]
    found = capacity.find(_spec(cell, chosen), goal, cache, tolerance=TOLERANCE).rate_per_gpu
    tried = {chosen}
    improved = True
    while improved:
        improved = False
        for setting in _neighbours(chosen, ranked):
            if setting in tried:
                continue
            tried.add(setting)
            better = found * (1.0 + TOLERANCE) if found else None
            if better is not None and not _meets(cell, setting, better, goal, cache):
                continue
            result = capacity.find(_spec(cell, setting), goal, cache, start=better, tolerance=TOLERANCE)
            if result.rate_per_gpu > found:
                found, chosen, improved = result.rate_per_gpu, setting, True
    return {
        "options": dict(chosen.options),
        "ratio": list(chosen.ratio),
        "rate_per_gpu": round(found, 4),
        "tried": len(tried),
    }


def _spec(cell: Cell, setting: Setting) -> RunSpec:
    cluster = setting.cluster(1)
    slice_s = SLICE_S.get(cell.scenario, BURSTY_SLICE_S)
    return RunSpec(cell.scenario, cell.profile, 1.0, cluster, Part.TUNE, cell.data, slice_s)


def _meets(cell: Cell, setting: Setting, rate: float, goal: Goal, cache: ResultCache) -> bool:
    probe = capacity.stopping(_spec(cell, setting), goal)
    return goal.met(cache.summary(probe.at_rate(rate)))


def _by_coordinates(settings: list[Setting]) -> list[Setting]:
    default = settings[0]
    return sorted(settings, key=lambda s: _distance(s, default))


def _neighbours(chosen: Setting, settings: list[Setting]) -> list[Setting]:
    """Settings that differ from the chosen one in a single option (or in the ratio)."""
    return [s for s in settings if _distance(s, chosen) == 1 or (s.policy == "sarathi" and s != chosen)]


def _distance(a: Setting, b: Setting) -> int:
    different = sum(x != y for x, y in zip(a.options, b.options, strict=True))
    return different + (a.ratio != b.ratio)


if __name__ == "__main__":
    main()
