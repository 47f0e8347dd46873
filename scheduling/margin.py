"""A safety margin that learns from the time model's own errors (ALGORITHMS section 13, "Noise").

A promise breaks when its risky steps, those that end close to a deadline, take longer than planned. The margin is the
quantile of measured / predicted, over as many steps in a row as make up for each other before a deadline, at which a
promise with that many risky steps is kept with the wanted precision, and it grows further while promises are broken
more often than that. Batches of all kinds count together, each by how often it comes: a rare kind ends few promises,
and has too few samples for a quantile that far out.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import NormalDist

import numpy as np

from scheduling.request_table import FloatArray
from scheduling.time_model import BatchShape, TimeModel

MIN_SAMPLES = 30
RISKY_STEPS = 80.0
"""Steps of one request that end near a deadline: an assumption on the careful side. Where hopeful requests are served,
nearly every step is filled up to one. With 20, 98.6 to 98.9 % of promises were kept where 99 % is the target; with 40,
98.9 to 99.0 %; with 80, 99.1 %, and as many requests attained their SLOs."""
STEPS_TO_DEADLINE = 2
"""Steps that make up for each other before a deadline. With 1, on steps with 12 % noise, 0.1 % of promises were broken
where 1 % may, and a sixteenth fewer requests attained their SLOs; with 3, 1 % were broken, and nothing was to spare."""
WINDOW = 2000
"""Steps that are remembered."""
PAUSED = 2 * STEPS_TO_DEADLINE
"""Samples that two pauses of the machine are part of; no margin covers those."""
MAX_MARGIN = 2.0
RECOMPUTE_STEPS = 50
_BOUNDS = (256.0, 1024.0)


def bucket(shape: BatchShape) -> str:
    """Kind of a batch: decodes only, or mixed by the number of new tokens."""
    if shape.prefill_attention <= 0.0 and shape.new_tokens <= shape.requests * (1.0 + shape.spec_steps):
        return "decode"
    for bound in _BOUNDS:
        if shape.new_tokens <= bound:
            return f"prefill<={bound:.0f}"
    return f"prefill>{_BOUNDS[-1]:.0f}"


class MarginEstimator:
    """Learns from steps and from kept promises; margin() is what TimeModel.with_margin takes."""

    def __init__(self, precision_target: float = 0.99, initial: float = 1.1) -> None:
        """precision_target: share of promises to keep. initial: margin until MIN_SAMPLES steps were seen."""
        if not 0.0 < precision_target < 1.0:
            raise ValueError(f"precision_target must lie between 0 and 1, not {precision_target}")
        self._target = precision_target
        self._initial = max(initial, 1.0)
        self._steps: deque[tuple[str, float, float]] = deque(maxlen=WINDOW)
        self._boost = 0.0
        self._learned = 0.0
        self._stale = 0

    def observe_step(self, model: TimeModel, shape: BatchShape, seconds: float) -> None:
        """Learn from one step."""
        self.observe_prediction(shape, model.duration_s(shape) / model.margin, seconds)

    def observe_prediction(self, shape: BatchShape, predicted_s: float, seconds: float) -> None:
        """Learn from one step whose duration was predicted elsewhere, without a margin."""
        if not (seconds > 0.0 and predicted_s > 0.0):
            return
        self._steps.append((bucket(shape), predicted_s, seconds))
        self._stale += 1

    def observe_promise(self, kept: bool) -> None:
        """Learn from the end of a promised request: the boost settles where the target share is kept."""
        step = 0.01
        self._boost += -step * (1.0 - self._target) if kept else step * self._target
        self._boost = min(max(self._boost, 0.0), MAX_MARGIN - 1.0)

    def margin(self, at_least: float = 1.0) -> float:
        """Return the factor on predicted times.

        at_least: what it is before broken promises add to it, even where steps look better.
        """
        if len(self._steps) < MIN_SAMPLES:
            return min(self._initial + self._boost, MAX_MARGIN)
        if self._learned == 0.0 or self._stale >= RECOMPUTE_STEPS:
            _, predicted_s, seconds = zip(*self._steps, strict=True)
            self._learned, self._stale = max(1.0, self._quantile(np.array(predicted_s), np.array(seconds))), 0
        return min(max(self._learned, at_least) + self._boost, MAX_MARGIN)

    def explain(self) -> dict[str, dict[str, float]]:
        """Per kind of batch: number of steps, median, p99 and largest measured / predicted, and its margin alone."""
        kinds: dict[str, list[tuple[float, float]]] = {}
        for name, predicted_s, seconds in self._steps:
            kinds.setdefault(name, []).append((predicted_s, seconds))
        report = {}
        for name, steps in sorted(kinds.items()):
            predicted, measured = np.array(steps).T
            p50, p99 = (float(q) for q in np.quantile(measured / predicted, (0.5, 0.99)))
            report[name] = {
                "steps": float(len(steps)),
                "p50": p50,
                "p99": p99,
                "largest": float((measured / predicted).max()),
                "margin": self._quantile(predicted, measured),
            }
        return report

    def _quantile(self, predicted_s: FloatArray, seconds: FloatArray) -> float:
        """Quantile for one risky deadline: the sample's where it reaches that far, else a normal tail beyond its bulk.

        The bulk's spread is taken from quantiles, so that single pauses of the machine do not set the margin.
        """
        in_a_row = np.ones(min(STEPS_TO_DEADLINE, len(seconds)))
        ratios = np.convolve(seconds, in_a_row, "valid") / np.convolve(predicted_s, in_a_row, "valid")
        wanted = 1.0 - (1.0 - self._target) / RISKY_STEPS
        p16, p50, p84 = (float(q) for q in np.quantile(ratios, (0.16, 0.5, 0.84)))
        normal = p50 + NormalDist().inv_cdf(wanted) * max(p84 - p50, (p84 - p16) / 2)
        if len(ratios) * (1.0 - wanted) >= PAUSED:
            return max(float(np.quantile(ratios, wanted)), p50)
        covered = max(0.0, 1.0 - (PAUSED + 1.0) / len(ratios))
        return max(normal, float(np.quantile(ratios, covered))) if math.isfinite(normal) else p50
