"""The highest rate at which a policy keeps enough promises: bracket, then bisection, same slice at every rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from simulation import profiles
from simulation.cache import ResultCache
from simulation.results import Summary
from simulation.run import RunSpec
from simulation.scenarios import slices
from simulation.scenarios.catalog import find_scenario

TOLERANCE = 0.03
GROWTH, GROWTH_WHEN_KNOWN = 1.35, 1.03
"""How far a search looks up or down first, without and with a rate to start from; the stride then doubles."""
LOWEST_RATE, HIGHEST_RATE = 1e-3, 1e4
Progress = Callable[[RunSpec, Summary], None]


class Scoring(StrEnum):
    """Which scoring an attainment target refers to."""

    STRICT = "strict"
    PAPER = "paper"


@dataclass(frozen=True, slots=True)
class Goal:
    """An attainment target."""

    attainment: float = 0.9
    scoring: Scoring = Scoring.STRICT

    def met(self, summary: Summary) -> bool:
        """Whether a run reached it."""
        attained = summary.attained if self.scoring is Scoring.STRICT else summary.attained_paper
        return not summary.stopped_early and attained >= self.attainment


@dataclass(frozen=True, slots=True)
class Capacity:
    """rate_per_gpu: the highest rate found to meet the goal, the next one tried, TOLERANCE above, did not.

    at: figures of the run at that rate; None (and rate 0) when no rate meets the goal. runs: how many were needed.
    """

    rate_per_gpu: float
    at: Summary | None
    runs: int


def find(
    spec: RunSpec,
    goal: Goal,
    cache: ResultCache,
    start: float | None = None,
    tolerance: float = TOLERANCE,
    progress: Progress | None = None,
) -> Capacity:
    """Capacity of one cell and one seed, relative accuracy `tolerance`.

    start: rate per GPU to look around first; estimated from the time model when not given. Rates are taken from one
    grid of steps of `tolerance`, so that neighbouring searches share runs.
    """
    spec = stopping(spec, goal)
    step = math.log1p(tolerance)
    stride = max(1, round(math.log(GROWTH_WHEN_KNOWN if start else GROWTH) / step))
    known: dict[int, Summary] = {}

    def met(index: int) -> bool:
        if index not in known:
            at_rate = spec.at_rate(math.exp(index * step))
            known[index] = cache.summary(at_rate)
            if progress is not None:
                progress(at_rate, known[index])
        return goal.met(known[index])

    low_end, high_end = round(math.log(LOWEST_RATE) / step), round(math.log(HIGHEST_RATE) / step)
    index = round(math.log(start if start else estimate(spec)) / step)
    if met(index):
        low, high = index, index + stride
        while high < high_end and met(high):
            stride *= 2
            low, high = high, high + stride
    else:
        low, high = index - stride, index
        while low > low_end and not met(low):
            stride *= 2
            low, high = max(low - stride, low_end), low
        if not met(low):
            return Capacity(0.0, None, len(known))
    while high - low > 1:
        middle = (low + high) // 2
        if met(middle):
            low = middle
        else:
            high = middle
    return Capacity(math.exp(low * step), known[low], len(known))


def stopping(spec: RunSpec, goal: Goal) -> RunSpec:
    """The run that ends as soon as the goal is certainly missed (strict scoring only)."""
    stop = 1.0 - goal.attainment if goal.scoring is Scoring.STRICT else 1.0
    return replace(spec, cluster=replace(spec.cluster, stop_when_late=stop))


def estimate(spec: RunSpec) -> float:
    """A first guess: requests per second and GPU if decodes shared their steps sixteen at a time."""
    profile = profiles.load(spec.profile)
    workload = slices.build(find_scenario(spec.scenario), 1.0, part=spec.part, seed=0, data=None, slice_s=120.0)
    constant = max(line[0] for line in profile.time_model.lines)
    per_token = max(line[1] for line in profile.time_model.lines)
    prompt = float((workload.prompt_tokens - workload.shared_prefix_tokens * spec.cluster.prefix_cache).sum())
    output = float(workload.output_tokens.sum())
    seconds = (prompt * per_token + output * (per_token + constant / 24.0)) / workload.sessions
    return 0.6 / (seconds * profile.gpus_per_replica)
