"""When sessions start, whatever the cluster does (open loop): Poisson, or Poisson with a spike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spike:
    """A stretch of the run at a multiple of the base rate; start and length are shares of the run (0..1)."""

    factor: float
    start: float = 1 / 3
    length: float = 1 / 6

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.factor <= 0:
            raise ValueError(f"the spike's factor must be positive, not {self.factor}")
        if not (0 <= self.start < 1 and 0 < self.length <= 1 - self.start):
            raise ValueError(f"the spike must lie inside the run: start {self.start}, length {self.length}")

    def level(self, share: float) -> float:
        """Rate at this share of the run, as a multiple of the base rate."""
        return self.factor if self.start <= share < self.start + self.length else 1.0

    @property
    def mean(self) -> float:
        """Mean rate of the run as a multiple of the base rate."""
        return 1.0 + (self.factor - 1.0) * self.length


NO_SPIKE = Spike(1.0)


def poisson(rate_per_s: float, duration_s: float, rng: np.random.Generator, spike: Spike = NO_SPIKE) -> FloatArray:
    """Arrival times in [0, duration_s) of a Poisson process whose base rate is rate_per_s, sorted."""
    if rate_per_s <= 0 or duration_s <= 0:
        raise ValueError("rate and duration must be positive")
    edges = np.array([0.0, spike.start, spike.start + spike.length, 1.0]) * duration_s
    parts = []
    for begin, end, level in zip(edges[:-1], edges[1:], (1.0, spike.factor, 1.0), strict=True):
        count = rng.poisson(rate_per_s * level * (end - begin))
        parts.append(rng.uniform(begin, end, count))
    return np.sort(np.concatenate(parts))
