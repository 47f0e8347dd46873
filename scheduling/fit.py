"""Fit a time model to measured batches: non-negative least squares on relative errors, one or two roofline lines.

Every fifth sample is held out; the quality that is reported, and the choice between one line and two, come from those.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scheduling.time_model import LINE_TERMS, BatchShape, FitQuality, TimeModel

FloatArray = npt.NDArray[np.float64]
MIN_SAMPLES = 10
_MIN_LINE_SAMPLES = 8


def fit(samples: Sequence[tuple[BatchShape, float]], source: str = "measured") -> TimeModel:
    """Fit a model to (shape, seconds) pairs; ValueError when there are too few or a time is not positive.

    Two lines are taken where they predict held-out batches better than one (by 10 % of the median relative error).
    """
    if len(samples) < MIN_SAMPLES:
        raise ValueError(f"fitting needs at least {MIN_SAMPLES} measured batches, got {len(samples)}")
    shapes = np.array([(1.0, *shape) for shape, _ in samples], dtype=np.float64)
    times = np.array([seconds for _, seconds in samples], dtype=np.float64)
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise ValueError("measured step times must be positive")
    held_out = np.arange(len(times)) % 5 == 2
    best: tuple[float, int] | None = None
    quality: FitQuality | None = None
    for count in (1, 2):
        lines = _fit_lines(shapes[~held_out], times[~held_out], count)
        if lines is None:
            continue
        candidate = _quality(lines, shapes[held_out], times[held_out], int((~held_out).sum()))
        if best is None or candidate.p50_relative_error < 0.9 * best[0]:
            best, quality = (candidate.p50_relative_error, count), candidate
    assert best is not None
    lines = _fit_lines(shapes, times, best[1])
    if lines is None:
        lines = _fit_lines(shapes, times, 1)
    assert lines is not None
    return TimeModel(tuple(tuple(float(c) for c in line) for line in lines), 1.0, source, quality)


def evaluate(model: TimeModel, samples: Sequence[tuple[BatchShape, float]]) -> FitQuality:
    """Quality of a model (without margin) on measured batches it was not fitted to."""
    if not samples:
        raise ValueError("no batches to evaluate on")
    shapes = np.array([(1.0, *shape) for shape, _ in samples], dtype=np.float64)
    times = np.array([seconds for _, seconds in samples], dtype=np.float64)
    return _quality(np.array(model.lines), shapes, times, 0)


def _quality(lines: FloatArray, shapes: FloatArray, times: FloatArray, fitted: int) -> FitQuality:
    predicted = (shapes @ lines.T).max(axis=1)
    errors = np.abs(predicted / times - 1.0)
    spread = float(((times - times.mean()) ** 2).sum())
    residual = float(((times - predicted) ** 2).sum())
    r2 = 1.0 - residual / spread if spread > 0 else float(residual == 0.0)
    p50, p99 = (float(q) for q in np.quantile(errors, (0.5, 0.99)))
    return FitQuality(r2, p50, p99, len(times), fitted)


def _fit_lines(shapes: FloatArray, times: FloatArray, count: int) -> FloatArray | None:
    """Max-affine regression by alternating assignment; None when a line is left with too few samples."""
    if count == 1:
        return _nnls_relative(shapes, times)[None, :]
    order = np.argsort(shapes[:, 1], kind="stable")
    assigned = np.zeros(len(times), dtype=np.int64)
    assigned[order[len(times) // 2 :]] = 1
    lines = np.zeros((count, shapes.shape[1]))
    for _ in range(20):
        for line in range(count):
            chosen = assigned == line
            if int(chosen.sum()) < _MIN_LINE_SAMPLES:
                return None
            lines[line] = _nnls_relative(shapes[chosen], times[chosen])
        updated = (shapes @ lines.T).argmax(axis=1)
        if (updated == assigned).all():
            break
        assigned = updated
    return lines


def _nnls_relative(shapes: FloatArray, times: FloatArray) -> FloatArray:
    """Minimise sum((predicted / measured - 1)^2) with coefficients >= 0, then trim outliers once."""
    weighted = shapes / times[:, None]
    solution = nnls(weighted, np.ones(len(times)))
    keep = typical(weighted @ solution - 1.0, 1e-6)
    if keep.sum() >= max(_MIN_LINE_SAMPLES, len(LINE_TERMS)) and not keep.all():
        solution = nnls(weighted[keep], np.ones(int(keep.sum())))
    return solution


def typical(errors: FloatArray, floor: float) -> npt.NDArray[np.bool_]:
    """Which errors lie within five times their median size, or within floor where that is less.

    Pauses of the machine make a few steps far too long; they say nothing of the batch, so a second pass leaves them
    out.
    """
    size = np.abs(errors)
    return np.asarray(size <= 5.0 * max(float(np.median(size)), floor))


def nnls(matrix: FloatArray, target: FloatArray) -> FloatArray:
    """Lawson-Hanson non-negative least squares on columns scaled to unit norm."""
    norms = np.linalg.norm(matrix, axis=0)
    scale = np.where(norms > 0, norms, 1.0)
    scaled = matrix / scale
    columns = matrix.shape[1]
    passive = np.zeros(columns, dtype=np.bool_)
    solution = np.zeros(columns)
    for _ in range(3 * columns):
        gradient = scaled.T @ (target - scaled @ solution)
        gradient[passive | (norms == 0)] = -np.inf
        entering = int(np.argmax(gradient))
        if gradient[entering] <= 1e-10:
            break
        passive[entering] = True
        while True:
            trial = np.zeros(columns)
            trial[passive] = np.linalg.lstsq(scaled[:, passive], target, rcond=None)[0]
            negative = passive & (trial <= 0)
            if not negative.any():
                solution = trial
                break
            steps = solution[negative] / (solution[negative] - trial[negative])
            solution = solution + float(steps.min()) * (trial - solution)
            passive &= solution > 1e-15
            solution[~passive] = 0.0
            if not passive.any():
                break
    return np.asarray(solution / scale, dtype=np.float64)
