"""When a step ended, told by events that wait for busy event loops on their way."""

from __future__ import annotations

import random

import pytest

from protos.slos.v1 import worker_pb2
from services.controller.step_record import KEPT, LATEST_S, StepRecord

AHEAD_S = 5_000.0
"""The worker's clock is this much ahead of ours."""
RTT_S = 0.002


def event(ended_s: float, age_s: float = 0.0) -> worker_pb2.Step:
    return worker_pb2.Step(
        duration_us=20_000, ended_us=round((ended_s + AHEAD_S) * 1e6), age_us=round(age_s * 1e6), batch_tokens=1
    )


def test_an_event_that_waited_on_either_side_is_dated_right() -> None:
    record, draw = StepRecord(), random.Random(3)
    for number in range(50):
        ended_s = 100.0 + 0.02 * number
        age_s, wait_s = draw.uniform(0.0, 0.01), draw.choice([0.0, 0.0, 0.08])
        got = record.ended_s(event(ended_s, age_s), ended_s + age_s + RTT_S / 2 + wait_s, RTT_S)
        if number > 20:
            assert got == pytest.approx(ended_s, abs=1e-4)
    assert record.count == 50
    assert record.mean_s == pytest.approx(0.02)


def test_a_worker_that_does_not_tell_is_believed_on_the_age_alone() -> None:
    step = worker_pb2.Step(duration_us=20_000, age_us=3_000)
    assert StepRecord().ended_s(step, 10.0, RTT_S) == pytest.approx(10.0 - 0.003 - RTT_S / 2)


def test_a_clock_that_jumps_does_no_harm_for_long() -> None:
    record = StepRecord()
    record.ended_s(event(100.0), 100.0, 0.0)
    slow_s = record.ended_s(event(101.0 - 3600.0), 101.0, 0.0)
    assert slow_s == pytest.approx(101.0 - LATEST_S)
    for _ in range(KEPT):
        last_s = record.ended_s(event(102.0 - 3600.0), 102.0, 0.0)
    assert last_s == pytest.approx(102.0)
    record.reattached()
    assert record.ended_s(event(50.0), 50.0, 0.0) == pytest.approx(50.0)
