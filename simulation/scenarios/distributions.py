"""Distributions that stand in for the public files: quantile tables joined by a normal copula, and bursty gaps.

A quantile table holds a variable's value at fixed probabilities; between them it is linear. Two variables are joined
through one rank correlation. Gaps between arrivals follow their own quantile table, and neighbouring gaps are
correlated, which is what makes bursts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PROBABILITIES: FloatArray = np.concatenate(
    [[0.0, 0.001, 0.005], np.linspace(0.01, 0.99, 50), [0.9925, 0.995, 0.9975, 0.999, 0.9995, 1.0]]
)


def normal_cdf(z: FloatArray) -> FloatArray:
    """Standard normal distribution function."""
    return np.asarray([0.5 * math.erfc(-x / math.sqrt(2.0)) for x in z.ravel()]).reshape(z.shape)


@dataclass(frozen=True, slots=True)
class QuantileTable:
    """A distribution by its values at PROBABILITIES."""

    values: tuple[float, ...]

    @staticmethod
    def of(sample: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> QuantileTable:
        """The table of a sample, each stretch between two probabilities keeping its mean where it can."""
        return QuantileTable(tuple(float(round(v, 6)) for v in np.quantile(sample, PROBABILITIES)))

    def at(self, probability: FloatArray) -> FloatArray:
        """Quantiles."""
        return np.interp(probability, PROBABILITIES, np.asarray(self.values))


@dataclass(frozen=True, slots=True)
class JointLengths:
    """Token counts of several correlated variables; correlation is of their normal scores, row by row."""

    tables: tuple[QuantileTable, ...]
    correlation: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(samples: Sequence[IntArray]) -> JointLengths:
        """Fit to columns of one length."""
        scores = np.stack([normal_scores(s) for s in samples])
        matrix = np.corrcoef(scores) if len(samples) > 1 else np.ones((1, 1))
        return JointLengths(
            tuple(QuantileTable.of(s) for s in samples),
            tuple(tuple(float(round(c, 4)) for c in row) for row in np.atleast_2d(matrix)),
        )

    def sample(self, count: int, rng: np.random.Generator) -> list[IntArray]:
        """Draw rows; every value is at least 1."""
        root = np.linalg.cholesky(np.asarray(self.correlation) + 1e-9 * np.eye(len(self.tables)))
        uniform = normal_cdf(root @ rng.standard_normal((len(self.tables), count)))
        return [np.maximum(1, np.rint(t.at(u))).astype(np.int64) for t, u in zip(self.tables, uniform, strict=True)]


@dataclass(frozen=True, slots=True)
class GapProcess:
    """Arrivals whose gaps have a given distribution and a given correlation between neighbours."""

    gaps: QuantileTable
    gap_correlation: float
    rate_per_s: float

    def sample(self, duration_s: float, rng: np.random.Generator) -> FloatArray:
        """Arrival times in [0, duration_s), at the process's own mean rate exactly."""
        count = max(2, round(self.rate_per_s * duration_s))
        noise = rng.standard_normal(count + 1)
        scores = np.empty(count + 1)
        scores[0] = noise[0]
        keep = math.sqrt(1.0 - self.gap_correlation**2)
        for i in range(1, count + 1):
            scores[i] = self.gap_correlation * scores[i - 1] + keep * noise[i]
        gaps = self.gaps.at(normal_cdf(scores))
        times = np.cumsum(gaps[:count])
        return times * (duration_s / (times[-1] + gaps[count]))


def normal_scores(sample: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> FloatArray:
    """Ranks mapped to standard normal quantiles (ties broken by a fixed shuffle)."""
    shuffle = np.random.default_rng(0).permutation(len(sample))
    order = np.argsort(np.asarray(sample)[shuffle], kind="stable")
    rank = np.empty(len(sample))
    rank[shuffle[order]] = np.arange(len(sample))
    return normal_quantile((rank + 0.5) / len(sample))


def normal_quantile(probability: FloatArray) -> FloatArray:
    """Inverse of normal_cdf by interpolation on a fine grid (error below 1e-4 inside +-5)."""
    grid = np.linspace(-6.0, 6.0, 4801)
    return np.interp(probability, normal_cdf(grid), grid)


def burstiness(arrival_s: FloatArray, bin_s: float = 10.0) -> tuple[float, float, float]:
    """CV of gaps, peak over mean count per bin, and share of requests in the busiest tenth of bins."""
    gaps = np.diff(arrival_s)
    bins = np.histogram(arrival_s, bins=max(1, int(arrival_s[-1] // bin_s)))[0]
    busiest = np.sort(bins)[-max(1, len(bins) // 10) :].sum() / bins.sum()
    return float(gaps.std() / gaps.mean()), float(bins.max() / bins.mean()), float(busiest)
