"""Fit a time model again while the engine serves, when its steps have drifted away from it.

A hot device, a neighbour on the machine or another driver changes how long steps take, and not all terms alike. The
steps of a running engine cover few kinds of batches, so they cannot fix every coefficient by themselves: each term gets
one factor, common to the lines of the model, drawn towards what all steps have in common (ridge regression on relative
errors). Terms that the steps say nothing of move with the rest.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from scheduling.fit import evaluate, nnls, typical
from scheduling.margin import bucket
from scheduling.request_table import FloatArray
from scheduling.time_model import BatchShape, TimeModel

SOURCE = "fitted again online"
FEWEST_OF_A_KIND = 40
"""Steps of one kind of batch, or of half a kind, whose median counts."""
BETTER = 0.8
"""A new model is taken when its median error on steps it has not seen is at most this share of the old one's."""


@dataclass(frozen=True, slots=True)
class RefitSettings:
    """window: steps that are looked at. every: steps between two looks; two in a row must see the drift.

    drift: relative distance of the median of a kind, or of its shorter or longer half, from what was predicted that
    counts. pull: weight of the common factor against the steps, as a share of their number.
    """

    window: int = 400
    every: int = 100
    drift: float = 0.1
    pull: float = 0.003


@dataclass(frozen=True, slots=True)
class Refitted:
    """A better model; drift: median of measured / predicted that the old one had, of the steps furthest off."""

    model: TimeModel
    drift: float


class OnlineFit:
    """Watches the steps of one engine, and answers with a better model once they have drifted from this one."""

    def __init__(self, model: TimeModel, settings: RefitSettings | None = None) -> None:
        """model: what the engine's steps are planned with."""
        self._settings = settings or RefitSettings()
        self._start(model)

    def _start(self, model: TimeModel) -> None:
        self.model = model.with_margin(1.0)
        self._steps: deque[tuple[BatchShape, float]] = deque(maxlen=self._settings.window)
        self._unseen = 0
        self._drifted_before = False

    def observe(self, shape: BatchShape, seconds: float) -> Refitted | None:
        """Take one step of this duration; a new model when there is reason for one, which counts from now on."""
        if not (seconds > 0.0 and shape.new_tokens > 0):
            return None
        self._steps.append((shape, seconds))
        self._unseen += 1
        if self._unseen < self._settings.every or len(self._steps) < self._settings.window:
            return None
        self._unseen = 0
        drift = self.drift()
        again, self._drifted_before = self._drifted_before, drift is not None
        found = self._refit() if drift is not None and again else None
        if drift is None or found is None:
            return None
        self._start(found)
        return Refitted(found, drift)

    def drift(self) -> float | None:
        """Median of measured / predicted of the steps that are furthest off, if that is too far; else None.

        Looked at are the batches of one kind, and of these the shorter and the longer half: where one term became
        cheaper and another dearer, the errors of a kind make up for each other.
        """
        kinds: dict[str, list[tuple[float, float]]] = {}
        for shape, seconds in self._steps:
            predicted_s = self.model.duration_s(shape)
            kinds.setdefault(bucket(shape), []).append((predicted_s, seconds / predicted_s))
        medians: list[float] = []
        for kind in kinds.values():
            ratios = np.array(sorted(kind))[:, 1]
            half = len(ratios) // 2
            looked_at = (part for part in (ratios, ratios[:half], ratios[half:]) if len(part) >= FEWEST_OF_A_KIND)
            medians.extend(float(np.median(part)) for part in looked_at)
        furthest = max(medians, key=lambda median: abs(np.log(median)), default=1.0)
        return furthest if abs(furthest - 1.0) > self._settings.drift else None

    def _refit(self) -> TimeModel | None:
        steps = list(self._steps)
        held_out = steps[2::5]
        used = [step for number, step in enumerate(steps) if number % 5 != 2]
        factors = self._factors(used)
        lines = tuple(_times(line, factors) for line in self.model.lines)
        quality = evaluate(TimeModel(lines), held_out)
        if quality.p50_relative_error > BETTER * evaluate(self.model, held_out).p50_relative_error:
            return None
        source = self.model.source if SOURCE in self.model.source else f"{self.model.source}; {SOURCE}"
        return replace(self.model, lines=lines, source=source, quality=replace(quality, fitted=len(used)))

    def _factors(self, steps: list[tuple[BatchShape, float]]) -> FloatArray:
        """One factor per term, >= 0, that minimises the relative errors and their distance from the common factor."""
        lines = np.array(self.model.lines)
        shapes = np.array([(1.0, *shape) for shape, _ in steps])
        seconds = np.array([seconds for _, seconds in steps])
        binding = (shapes @ lines.T).argmax(axis=1)
        parts = shapes * lines[binding] / seconds[:, None]
        common = 1.0 / float(np.median(parts.sum(axis=1)))
        factors = self._drawn_to(common, parts)
        return self._drawn_to(common, parts[typical(parts @ factors - 1.0, 1e-3)])

    def _drawn_to(self, common: float, parts: FloatArray) -> FloatArray:
        """Least squares of parts @ factors against 1, and of the factors against the common one."""
        steps, terms = parts.shape
        pull = np.sqrt(self._settings.pull * steps)
        rows = np.vstack([parts, pull * np.eye(terms)])
        return nnls(rows, np.concatenate([np.ones(steps), np.full(terms, pull * common)]))


def _times(line: tuple[float, ...], factors: FloatArray) -> tuple[float, ...]:
    """The line with its terms scaled; a decode's token still costs no less than nothing."""
    constant, tokens, requests, *others = (float(c * f) for c, f in zip(line, factors, strict=True))
    return constant, tokens, max(requests, -tokens), *others
