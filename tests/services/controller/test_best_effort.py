from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.best_effort import BestEffortQueue
from tests.services.controller.making import make_request

ARRIVALS = st.lists(st.tuples(st.floats(0, 100), st.sampled_from(["a", "b", "c"])), min_size=1, max_size=30)


@given(arrivals=ARRIVALS)
def test_first_in_first_out_within_a_tenant_however_they_are_pushed(arrivals: list[tuple[float, str]]) -> None:
    queue = BestEffortQueue(1000)
    for index, (arrival_s, tenant) in enumerate(arrivals):
        queue.push(make_request(str(index), arrival_s=arrival_s, tenant=tenant))
    assert len(queue) == len(arrivals)
    gone: dict[str, list[float]] = {}
    while (request := queue.first("tiny", 1000.0, {"a": 4.0})) is not None:
        assert queue.remove(request)
        assert not queue.remove(request)
        gone.setdefault(request.tenant, []).append(request.arrival_s)
    assert sum(map(len, gone.values())) == len(arrivals)
    assert len(queue) == 0
    assert not queue.models()
    assert all(times == sorted(times) for times in gone.values())


def test_heavy_tenants_go_first_but_age_wins_in_the_end() -> None:
    queue = BestEffortQueue(10)
    light = make_request("light", arrival_s=0.0, tenant="light")
    queue.push(light)
    queue.push(make_request("heavy", arrival_s=9.0, tenant="heavy"))
    weights = {"heavy": 20.0}
    first = queue.first("tiny", 10.0, weights)
    assert first is not None
    assert first.request_id == "heavy"
    queue.remove(first)
    queue.push(make_request("heavy-2", arrival_s=99.0, tenant="heavy"))
    assert queue.first("tiny", 100.0, weights) is light


def test_only_requests_of_the_model_are_given_out() -> None:
    queue = BestEffortQueue(10)
    queue.push(make_request("x", model="other"))
    assert queue.first("tiny", 1e9, {}) is None
    assert queue.models() == {"other"}


def test_full_is_said_and_those_that_come_back_are_taken_still() -> None:
    queue = BestEffortQueue(1)
    assert not queue.full
    queue.push(make_request("1"))
    assert queue.full
    queue.push(make_request("2"))
    assert len(queue) == 2
    with pytest.raises(ValueError, match="-1"):
        BestEffortQueue(-1)
