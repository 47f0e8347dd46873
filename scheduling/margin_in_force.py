"""The safety factor in force on one replica: when a learned margin is put to use, and what counts as evidence for it.

The controller keeps one of these per replica, and so does the simulator.
"""

from __future__ import annotations

from scheduling.margin import MarginEstimator
from scheduling.time_model import BatchShape, TimeModel

FIRST_GUESS = 1.1
"""Smallest margin of an engine that has shown little of itself yet."""
LARGEST_ERROR = 1 / 3
"""A profile with a larger error than this was disturbed, and says nothing of the steps to come."""
FEW_STEPS = 300
"""Until an engine has shown this many steps it may have hidden its slow ones."""
ONE_CAUSE_STEPS = 25
"""Promises that break within so many steps were broken together: by one pause of the machine, say, which no margin
covers, and after which it would take thousands of kept promises to come down again."""
SMALLEST_CHANGE = 0.005
"""Changes below this are not worth a message."""


class MarginInForce:
    """What the planner multiplies predicted times with; `in_force` is what is used now."""

    def __init__(self, precision_target: float) -> None:
        """precision_target: share of promises to keep."""
        self.in_force = 1.0
        self._precision_target = precision_target
        self._lines: tuple[tuple[float, ...], ...] = ()
        self._start(FIRST_GUESS)

    def _start(self, first: float) -> None:
        self._first = first
        self._steps = 0
        self._last_miss = -ONE_CAUSE_STEPS
        self._estimator = MarginEstimator(self._precision_target, first)

    def attached(self, model: TimeModel) -> None:
        """Take the engine's time model; what was learned of another one is forgotten."""
        if model.lines == self._lines:
            return
        self._lines = model.lines
        self._start(first_margin(model))

    def measured(self, shape: BatchShape, predicted_s: float, seconds: float) -> None:
        """Learn from one step, if there was a prediction for it; predicted_s is without a margin."""
        if predicted_s > 0 and seconds > 0:
            self._steps += 1
            self._estimator.observe_prediction(shape, predicted_s, seconds)

    def promise_ended(self, kept: bool) -> None:
        """Learn from a promised request that has ended by itself."""
        if not kept:
            if self._steps - self._last_miss < ONE_CAUSE_STEPS:
                return
            self._last_miss = self._steps
        self._estimator.observe_promise(kept)

    def wanted(self) -> float:
        """Margin that would be right now."""
        return self._estimator.margin(self._first if self._steps < FEW_STEPS else 1.0)

    def take(self) -> bool:
        """Put the wanted margin in force; False when it is much the same."""
        wanted = round(self.wanted(), 3)
        if abs(wanted - self.in_force) < SMALLEST_CHANGE:
            return False
        self.in_force = wanted
        return True

    def explain(self) -> dict[str, dict[str, float]]:
        """Per kind of batch: steps, quantiles of measured / predicted, and margin."""
        return self._estimator.explain()


def first_margin(model: TimeModel) -> float:
    """Margin of an engine that is known by its profile alone: what covered its worst held-out batches."""
    if model.quality is None:
        return FIRST_GUESS
    return max(FIRST_GUESS, 1.0 / (1.0 - min(model.quality.p99_relative_error, LARGEST_ERROR)))
