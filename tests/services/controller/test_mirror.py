"""What the mirror makes of an engine between two of its events."""

from __future__ import annotations

import time

import pytest

from protos.slos.v1 import worker_pb2
from scheduling import registry
from scheduling.time_model import BatchShape
from scheduling.types import Admission
from services.controller.mirror import ReplicaMirror
from tests.services.controller.making import make_request
from tests.services.controller.peer import info

BATCHING = registry.get("slos").batching


def mirror_with(*names: str) -> ReplicaMirror:
    mirror = ReplicaMirror("w", info())
    for name in names:
        request = make_request(name, prompt=tuple(range(20)))
        request.admission = Admission.STANDARD
        mirror.add(request, request.first_due_s)
    return mirror


def test_an_idle_engine_takes_a_request_now() -> None:
    mirror = mirror_with()
    seen = mirror.foreseen(5.0, BATCHING)
    assert (seen.as_of_s, seen.table, seen.free_blocks) == (5.0, mirror.table, mirror.free_blocks)


def test_the_running_step_is_over_before_a_new_request_joins() -> None:
    mirror = mirror_with("a")
    now_s = time.monotonic()
    seen = mirror.foreseen(now_s, BATCHING)
    table = seen.table
    assert seen.as_of_s - now_s == pytest.approx(mirror.model.duration_s(BatchShape(20, 1)), abs=0.005)
    assert table.generated[table.slot("a")] == 1
    assert seen.free_blocks == mirror.free_blocks - 2
    assert mirror.table.generated[mirror.table.slot("a")] == 0, "the mirror itself waits for the event"
    # An engine that takes longer than predicted may end its step at any moment.
    assert mirror.foreseen(now_s + 9.0, BATCHING).as_of_s == now_s + 9.0


def test_who_came_during_the_step_is_not_in_it() -> None:
    mirror = mirror_with("a", "b")
    table = mirror.foreseen(time.monotonic(), BATCHING).table
    assert table.generated[table.slot("a")] == 1
    assert table.generated[table.slot("b")] == 0
    assert table.active[table.slot("b")]
    assert mirror.table.active[mirror.table.slot("b")]
    mirror.stepped(worker_pb2.Step(free_blocks=98), time.monotonic())
    table = mirror.foreseen(time.monotonic(), BATCHING).table
    assert table.generated[table.slot("b")] == 1


def test_no_step_is_foreseen_when_all_that_was_in_it_has_gone() -> None:
    mirror = mirror_with("a", "b")
    mirror.remove("a")
    now_s = time.monotonic()
    assert mirror.foreseen(now_s, BATCHING).as_of_s == now_s
    assert mirror.foreseen(now_s, BATCHING).table is mirror.table
    mirror.remove("b")
    assert mirror.foreseen(now_s, BATCHING).as_of_s == now_s
    assert mirror.foreseen(now_s, BATCHING).table is mirror.table


def test_a_request_whose_kv_has_not_come_is_in_no_step() -> None:
    mirror = mirror_with()
    request = make_request("far", prompt=tuple(range(20)))
    mirror.add(request, request.first_due_s, arrives=True)
    mirror.stepped(worker_pb2.Step(free_blocks=98), time.monotonic())
    assert mirror.foreseen(5.0, BATCHING).table is mirror.table
    mirror.apply(worker_pb2.RequestStep(request_id="far", token_ids=[1], context_tokens=20), time.monotonic())
    seen = mirror.foreseen(time.monotonic(), BATCHING)
    assert seen.table.generated[seen.table.slot("far")] == 2
