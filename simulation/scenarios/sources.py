"""Where a scenario's arrivals and lengths come from: a public file when the user has it, else its fitted distribution.

Tuning and reporting never share data: arrivals come from different stretches of a trace, lengths from different
halves of a table, and fitted distributions from different seeds.
"""

from __future__ import annotations

import json
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulation.scenarios import public_data
from simulation.scenarios.distributions import GapProcess, JointLengths, QuantileTable
from simulation.scenarios.fit import FITTED, r1_lengths, tool_lengths

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SLICE_S = 1200.0


class Part(StrEnum):
    """Which part of the data a run may see."""

    TUNE = "tune"
    REPORT = "report"


SLICE_START_S = {Part.TUNE: 0.0, Part.REPORT: 1200.0}
"""Where the 20-minute slice of a trace begins."""


def arrivals(name: str, part: Part, data: Path | None, rng: np.random.Generator) -> FloatArray:
    """Arrival times within one slice of SLICE_S seconds, at the source's own rate."""
    if public_data.available(data, name):
        assert data is not None
        start = SLICE_START_S[part]
        if name == "deepseek-r1":
            times = np.asarray(public_data.read(data, name)["arrived_at"], np.float64)
        else:
            times = public_data.azure_seconds(public_data.read(data, name))
        return times[(times >= start) & (times < start + SLICE_S)] - start
    fitted = _fitted()[name]
    process = GapProcess(QuantileTable(tuple(fitted["gaps_s"])), fitted["gap_correlation"], fitted["rate_per_s"])
    return process.sample(SLICE_S, rng)


def lengths(
    name: str, window_tokens: int, count: int, part: Part, data: Path | None, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Prompt and output tokens of `count` requests."""
    if public_data.available(data, name):
        assert data is not None
        prompt, output = public_data.lengths(data, name, window_tokens)
        rows = _half(len(prompt), part)[rng.integers(0, len(prompt) // 2, count)]
        return prompt[rows], output[rows]
    prompt, output = _joint(f"{name}-lengths").sample(count, rng)
    prompt = np.minimum(prompt, window_tokens - 1)
    return prompt, np.minimum(output, window_tokens - prompt)


def reasoning_lengths(
    window_tokens: int, count: int, part: Part, data: Path | None, rng: np.random.Generator
) -> tuple[IntArray, IntArray, IntArray]:
    """Prompt, output and thinking tokens."""
    if public_data.available(data, "deepseek-r1"):
        assert data is not None
        prompt, output, thinking = r1_lengths(data, window_tokens)
        rows = _half(len(prompt), part)[rng.integers(0, len(prompt) // 2, count)]
        return prompt[rows], output[rows], thinking[rows]
    prompt, answer, thinking = _joint("deepseek-r1-lengths").sample(count, rng)
    prompt = np.minimum(prompt, window_tokens - 2)
    thinking = np.minimum(thinking, window_tokens - prompt - 1)
    return prompt, thinking + np.minimum(answer, window_tokens - prompt - thinking), thinking


def tool_rounds(
    count: int, part: Part, data: Path | None, rng: np.random.Generator
) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
    """First prompts and call counts of `count` sessions; growth, inner and last outputs to draw rounds from."""
    growth: IntArray
    if public_data.available(data, "toolbench-sessions") and public_data.available(data, "toolbench-rounds"):
        assert data is not None
        first, calls, growth, inner, last = tool_lengths(data)
        rows = _half(len(first), part)[rng.integers(0, len(first) // 2, count)]
        return first[rows], calls[rows], growth, inner, last
    first, calls = _joint("toolbench-sessions").sample(count, rng)
    (growth,) = _joint("toolbench-growth").sample(1024, rng)
    (inner,) = _joint("toolbench-inner-output").sample(1024, rng)
    (last,) = _joint("toolbench-last-output").sample(1024, rng)
    return first, calls, growth, inner, last


def origin(name: str, data: Path | None) -> str:
    """Say where the numbers come from, for reports."""
    kind = "file" if public_data.available(data, name) else "fitted to"
    return f"{kind}: {public_data.FILES[name].origin}"


@lru_cache(maxsize=1)
def _fitted() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FITTED.read_text())
    return data


def _joint(name: str) -> JointLengths:
    fitted = _fitted()[name]
    return JointLengths(
        tuple(QuantileTable(tuple(t)) for t in fitted["tables"]), tuple(tuple(r) for r in fitted["correlation"])
    )


def _half(rows: int, part: Part) -> IntArray:
    """Row numbers of one half, chosen by a fixed shuffle."""
    shuffled = np.random.default_rng(1).permutation(rows)
    middle = rows // 2
    return shuffled[:middle] if part is Part.TUNE else shuffled[rows - middle :]
