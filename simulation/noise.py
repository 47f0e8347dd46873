"""How true step times spread about their time model."""

from __future__ import annotations

import numpy as np

from scheduling.request_table import FloatArray

FLOOR = 0.5
BATCH = 4096


class StepNoise:
    """Draws a factor for each step of one replica."""

    def __init__(self, deviation: float, seed: tuple[int, ...], factors: FloatArray | None = None) -> None:
        """Factors are normal with this standard deviation, or drawn from those given."""
        self._deviation = deviation
        self._factors = factors
        self._rng = np.random.default_rng(seed)
        self._draws: FloatArray = np.empty(0)
        self.none = deviation == 0.0 and factors is None
        """All factors are 1."""

    def draw(self) -> float:
        """Factor of the next step."""
        if self.none:
            return 1.0
        if len(self._draws) == 0:
            self._draws = self._batch()
        value, self._draws = float(self._draws[-1]), self._draws[:-1]
        return value

    def _batch(self) -> FloatArray:
        if self._factors is not None:
            return self._rng.choice(self._factors, BATCH)
        return np.maximum(FLOOR, 1.0 + self._deviation * self._rng.standard_normal(BATCH))
