"""The margin: prudent at first, learned from steps and promises, and the same on worker and controller."""

from __future__ import annotations

import random

import pytest

from protos.slos.v1 import worker_pb2
from scheduling.margin import WINDOW
from scheduling.margin_in_force import FEW_STEPS, FIRST_GUESS, ONE_CAUSE_STEPS, first_margin
from scheduling.time_model import FitQuality, TimeModel
from services.controller.learned_margin import LearnedMargin
from tests.services.controller.peer import MODEL, Peer
from tests.services.controller.test_replica import Record, attached, until


def fitted(p99_error: float) -> TimeModel:
    return TimeModel(MODEL.lines, quality=FitQuality(0.99, 0.01, p99_error, 40, 160))


def step_of(ratio: float, predicted_us: int = 20_000) -> worker_pb2.Step:
    return worker_pb2.Step(
        duration_us=round(ratio * predicted_us), predicted_us=predicted_us, batch_tokens=4, batch_requests=4
    )


@pytest.mark.parametrize(("error", "expected"), [(0.01, FIRST_GUESS), (0.2, 1.25), (0.9, 1.5)])
def test_the_first_margin_covers_what_the_profile_got_wrong(error: float, expected: float) -> None:
    assert first_margin(fitted(error)) == pytest.approx(expected)
    assert first_margin(MODEL) == FIRST_GUESS


def test_the_first_margin_stays_until_the_engine_is_known() -> None:
    margin = LearnedMargin(0.99)
    margin.attached(fitted(0.2))
    assert margin.take()
    assert margin.in_force == 1.25
    for _ in range(FEW_STEPS - 1):
        margin.stepped(step_of(1.0))
    assert margin.wanted() == pytest.approx(1.25)
    margin.stepped(step_of(1.0))
    assert margin.wanted() == pytest.approx(1.0)


def test_noisy_steps_widen_the_margin_and_exact_ones_narrow_it_again() -> None:
    margin, draw = LearnedMargin(0.99), random.Random(1)
    for _ in range(1000):
        margin.stepped(step_of(draw.gauss(1.0, 0.1)))
    assert margin.take()
    noisy = margin.in_force
    assert 1.15 < noisy < 1.35
    assert margin.explain()["decode"]["steps"] == 1000
    for _ in range(WINDOW):
        margin.stepped(step_of(draw.gauss(1.0, 0.01)))
    assert margin.take()
    assert margin.in_force < 1.06


def test_pauses_of_the_machine_and_a_rare_kind_of_batch_do_not_set_the_margin() -> None:
    margin, draw = LearnedMargin(0.99), random.Random(2)
    for number in range(WINDOW):
        margin.stepped(step_of(20.0 if number in (700, 1500) else draw.gauss(1.0, 0.03)))
        if number % 60 == 0:
            long = worker_pb2.Step(duration_us=170_000, predicted_us=120_000, batch_tokens=2000, batch_requests=5)
            margin.stepped(long)
    assert margin.explain()["prefill>1024"]["margin"] == pytest.approx(1.42, abs=0.01)
    assert margin.wanted() < 1.42


def test_broken_promises_widen_the_margin() -> None:
    margin = LearnedMargin(0.99)
    for number in range(10 * ONE_CAUSE_STEPS):
        margin.stepped(step_of(1.0))
        margin.promise_ended(number % 10 != 0)
    # Every second miss comes too soon after the one before.
    assert margin.wanted() == pytest.approx(FIRST_GUESS + 0.05, abs=0.05)
    assert margin.wanted() > FIRST_GUESS + 0.03


def test_one_pause_that_breaks_many_promises_counts_once() -> None:
    margin = LearnedMargin(0.99)
    for _ in range(100):
        margin.promise_ended(kept=False)
    assert margin.wanted() == pytest.approx(FIRST_GUESS + 0.01, abs=0.001)


def test_steps_without_a_prediction_and_another_engine_count_for_nothing() -> None:
    margin = LearnedMargin(0.99)
    margin.attached(MODEL)
    for _ in range(FEW_STEPS):
        margin.stepped(worker_pb2.Step(duration_us=50_000, batch_tokens=1, batch_requests=1))
    assert margin.explain() == {}
    for _ in range(FEW_STEPS):
        margin.stepped(step_of(1.4))
    assert margin.wanted() >= 1.4
    margin.attached(MODEL)
    assert margin.wanted() >= 1.4, "the same engine came back"
    margin.attached(MODEL.scaled(2.0))
    assert margin.wanted() == FIRST_GUESS


async def test_a_model_that_was_fitted_again_counts_with_a_margin_of_its_own() -> None:
    peer = Peer()
    async with attached(peer, Record(), LearnedMargin(0.99)) as replica:
        await until(lambda: replica.usable)
        for number in range(1, FEW_STEPS + 1):
            peer.send(worker_pb2.Event(number=number, step=step_of(1.5)))
        await peer.hear(lambda c: c.configure.time_margin >= 1.49)
        peer.commands.clear()
        slower = MODEL.scaled(1.5)
        changed = worker_pb2.TimeModelChanged(time_model_json=slower.to_json(), drift=1.5)
        peer.send(worker_pb2.Event(number=FEW_STEPS + 1, time_model_changed=changed))
        told = await peer.hear(lambda c: c.configure.time_margin == pytest.approx(FIRST_GUESS))
        assert replica.mirror is not None
        assert replica.mirror.model.lines == slower.lines
        assert replica.mirror.model.margin == pytest.approx(told.configure.time_margin)
        assert replica.info.time_model_json == slower.to_json()


async def test_the_worker_is_told_at_once_and_whenever_it_moves() -> None:
    peer = Peer()
    async with attached(peer, Record(), LearnedMargin(0.99)) as replica:
        first = await peer.hear(lambda c: c.WhichOneof("command") == "configure")
        assert first.configure.time_margin == pytest.approx(FIRST_GUESS)
        assert not first.configure.policy
        await until(lambda: replica.usable)
        assert replica.mirror is not None
        assert replica.mirror.model.margin == pytest.approx(FIRST_GUESS)
        for number in range(1, FEW_STEPS + 1):
            peer.send(worker_pb2.Event(number=number, step=step_of(1.3)))
        moved = await peer.hear(lambda c: c.configure.time_margin >= 1.29)
        assert replica.mirror.model.margin == pytest.approx(moved.configure.time_margin)
        # A stream that comes back may end at a worker whose controller was another meanwhile.
        peer.commands.clear()
        peer.hang_up()
        again = await peer.hear(lambda c: c.WhichOneof("command") == "configure")
        assert again.configure.time_margin == pytest.approx(moved.configure.time_margin)
