"""The same 20 minutes at every rate, and never less than ten simulated minutes.

The rate is changed by stretching time. Where that would leave less than MIN_DURATION_S, several copies of the slice
are laid over each other, each shifted in time by a seeded offset, and stretched together: short runs inflate capacity,
because memory never fills.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np

from simulation.scenarios.catalog import Scenario
from simulation.scenarios.sources import SLICE_S, Part
from simulation.workload import Workload, merged, shifted

MIN_DURATION_S, SHORT_SLICE_S = 600.0, 300.0


def build(
    scenario: Scenario,
    rate_per_s: float,
    *,
    part: Part = Part.REPORT,
    seed: int = 0,
    data: Path | None = None,
    slice_s: float = SLICE_S,
) -> Workload:
    """The scenario's slice at a rate in sessions per second; deterministic in all arguments.

    slice_s below SLICE_S takes only the beginning of the slice (tests and quick looks); below SHORT_SLICE_S simulated
    time may be short too.
    """
    if not rate_per_s > 0:
        raise ValueError(f"the rate must be positive, not {rate_per_s}")
    base = _copy(scenario, part, seed, data, slice_s, 0)
    needed_s = MIN_DURATION_S if slice_s >= SHORT_SLICE_S else slice_s / 2
    copies = max(1, math.ceil(needed_s * rate_per_s / base.sessions - 1e-9))
    parts = [base]
    offsets = np.random.default_rng(_seed(scenario, part, seed, 0) ^ 0x5EED).random(copies)
    for copy in range(1, copies):
        other = _copy(scenario, part, seed, data, slice_s, copy)
        parts.append(shifted(other, float(offsets[copy]) * slice_s, slice_s))
    whole = parts[0] if copies == 1 else merged(parts)
    return whole.stretched(whole.sessions / slice_s / rate_per_s)


def _copy(scenario: Scenario, part: Part, seed: int, data: Path | None, slice_s: float, copy: int) -> Workload:
    """One slice; copies differ in lengths (and, where fitted, in arrivals), the stretch of the trace is the same."""
    whole = scenario.build(part, data, np.random.default_rng(_seed(scenario, part, seed, copy)))
    if slice_s >= SLICE_S:
        return whole
    arrival = whole.arrival_s
    starts = np.where(np.isnan(arrival), -1.0, arrival)
    session_start = np.zeros(whole.sessions)
    np.maximum.at(session_start, whole.session, starts)
    kept_sessions = max(1, int((session_start < slice_s).sum()))
    rows = int((whole.session < kept_sessions).sum())
    return whole.head(rows)


def _seed(scenario: Scenario, part: Part, seed: int, copy: int) -> int:
    return zlib.crc32(f"{scenario.name}/{part}/{seed}/{copy}".encode())
