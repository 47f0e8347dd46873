"""The fit finds the model that made the samples, through outliers too, and says what it cannot use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.fit import evaluate, fit
from scheduling.time_model import BatchShape, TimeModel


def shapes(seed: int, count: int) -> list[BatchShape]:
    """Mixed batches: decodes over their KV beside a prefill chunk."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        decodes, chunk = int(rng.integers(0, 64)), int(rng.integers(0, 2000))
        context = float(rng.integers(0, 4000))
        found.append(
            BatchShape(decodes + chunk + 1.0, decodes + 1.0, decodes * context, chunk * (context + chunk / 2), 0.0)
        )
    return found


@given(st.integers(0, 1000), st.floats(5e-3, 5e-2), st.floats(2e-5, 3e-4), st.floats(0.0, 1e-7))
@settings(max_examples=20, deadline=None)
def test_a_line_is_found_through_outliers(seed: int, constant: float, per_token: float, per_kv: float) -> None:
    true = TimeModel(((constant, per_token, 0.0, per_kv, 1e-9, 0.0),))
    rng = np.random.default_rng(seed)
    samples = [(shape, true.duration_s(shape)) for shape in shapes(seed, 300)]
    for k in rng.integers(0, 300, 3):
        samples[k] = (samples[k][0], 5.0 * samples[k][1])
    model = fit(samples)
    fresh = [(shape, true.duration_s(shape)) for shape in shapes(seed + 1, 200)]
    assert evaluate(model, fresh).p50_relative_error < 0.02
    assert all(c >= 0.0 for c in model.lines[0][:2])


def test_a_roofline_takes_two_lines() -> None:
    true = TimeModel(((0.03, 1e-6, 0.0, 0.0, 0.0, 0.0), (0.005, 8e-5, 0.0, 0.0, 0.0, 0.0)))
    model = fit([(shape, true.duration_s(shape)) for shape in shapes(0, 400)])
    assert len(model.lines) == 2
    assert model.quality is not None
    assert model.quality.p99_relative_error < 0.05


def test_bad_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        fit([(BatchShape(1.0), 0.1)])
    with pytest.raises(ValueError, match="must be positive"):
        fit([(BatchShape(float(k)), 0.0) for k in range(1, 200)])
    with pytest.raises(ValueError, match="no batches"):
        evaluate(TimeModel(((0.1, 0.0, 0.0, 0.0, 0.0, 0.0),)), [])
