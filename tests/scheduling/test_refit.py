"""The time model follows an engine that drifts, and is left alone by one that only varies."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduling.fit import evaluate
from scheduling.refit import SOURCE, OnlineFit, RefitSettings, Refitted
from scheduling.time_model import BatchShape, TimeModel

PLANNED = TimeModel(
    ((0.02, 1e-4, -5e-5, 4e-7, 1e-8, 0.0), (0.008, 1.5e-4, 0.0, 2e-7, 2e-8, 2e-3)), source="measured: for tests"
)


def with_factors(model: TimeModel, *factors: float) -> TimeModel:
    """The model with each of its terms multiplied."""
    return TimeModel(tuple(tuple(c * f for c, f in zip(line, factors, strict=True)) for line in model.lines))


def shapes(seed: int, prefills: float = 0.4) -> list[BatchShape]:
    """Batches of a busy engine: mostly decodes, some with a chunk of a prompt."""
    draw = random.Random(seed)
    found = []
    for _ in range(3000):
        decodes = draw.randint(1, 60)
        kv = decodes * draw.randint(50, 2000)
        if draw.random() < prefills:
            chunk = draw.randint(16, 2000)
            found.append(BatchShape(decodes + chunk, decodes + 1, kv, chunk * draw.randint(0, 2000) + chunk**2 / 2))
        else:
            found.append(BatchShape(decodes, decodes, kv))
    return found


def watch(fit: OnlineFit, true: TimeModel, steps: list[BatchShape], noise: float = 0.0) -> list[Refitted]:
    """Let the steps take what the true model says; what came of it."""
    draw = random.Random(7)
    answers = (fit.observe(shape, true.duration_s(shape) * max(0.2, draw.gauss(1.0, noise))) for shape in steps)
    return [answer for answer in answers if answer is not None]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.5, 2.5), min_size=4, max_size=4), st.sampled_from([0.0, 0.05, 0.12]), st.integers(0, 1 << 16)
)
@example([0.5, 0.75, 2.0, 2.0], 0.0, 0).via("the errors of a kind of batch made up for each other")
def test_after_a_drift_of_any_terms_steps_are_predicted_again(factors: list[float], noise: float, seed: int) -> None:
    constant, tokens, kv, attention = factors
    true = with_factors(PLANNED, constant, tokens, tokens, kv, attention, 1.0)
    fit = OnlineFit(PLANNED)
    steps = shapes(seed)
    watch(fit, true, steps[:2000], noise)
    fresh = [(shape, true.duration_s(shape)) for shape in steps[2000:]]
    before, after = (evaluate(model, fresh).p50_relative_error for model in (PLANNED, fit.model))
    assert after <= max(before, 1e-9)
    # A kind of batch that is off by less than `drift` is the margin's business.
    assert after <= RefitSettings().drift + 0.02


def test_an_engine_that_only_varies_keeps_its_model() -> None:
    fit = OnlineFit(PLANNED)
    assert watch(fit, PLANNED, shapes(1), noise=0.2) == []
    assert fit.model == PLANNED


def test_a_short_disturbance_changes_nothing() -> None:
    fit, steps = OnlineFit(PLANNED), shapes(2)
    assert watch(fit, PLANNED, steps[:500]) == []
    assert watch(fit, PLANNED.scaled(2.0), steps[500:650]) == []
    assert watch(fit, PLANNED, steps[650:]) == []


def test_what_the_steps_say_nothing_of_moves_with_the_rest() -> None:
    fit = OnlineFit(PLANNED)
    refits = watch(fit, PLANNED.scaled(1.5), shapes(3, prefills=0.0)[:600])
    assert len(refits) == 1
    assert refits[0].drift == pytest.approx(1.5)
    assert SOURCE in refits[0].model.source
    prompt = BatchShape(1500, 1, 0.0, 1500**2 / 2)
    assert fit.model.duration_s(prompt) == pytest.approx(1.5 * PLANNED.duration_s(prompt), rel=0.05)


def test_one_term_alone_is_found() -> None:
    fit = OnlineFit(PLANNED)
    true = with_factors(PLANNED, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0)
    assert watch(fit, true, shapes(4)[:1500])
    factors = np.array(fit.model.lines)[:, 1] / np.array(PLANNED.lines)[:, 1]
    assert factors == pytest.approx(2.0, rel=0.1)
    assert fit.model.lines[0][0] / PLANNED.lines[0][0] == pytest.approx(1.0, rel=0.1)


def test_pauses_of_the_machine_do_not_count() -> None:
    fit, steps = OnlineFit(PLANNED), shapes(5)
    true = PLANNED.scaled(0.7)
    for number, shape in enumerate(steps[:800]):
        fit.observe(shape, true.duration_s(shape) * (30.0 if number % 20 == 0 else 1.0))
    fresh = [(shape, true.duration_s(shape)) for shape in steps[800:]]
    assert evaluate(fit.model, fresh).p99_relative_error < 0.05


def test_steps_that_computed_nothing_are_left_out() -> None:
    fit = OnlineFit(PLANNED)
    assert all(fit.observe(BatchShape(0), 1.0) is None for _ in range(1000))
    assert all(fit.observe(BatchShape(1, 1), 0.0) is None for _ in range(1000))
    assert fit.drift() is None
