"""Every routing policy gives a bounded list of distinct replicas, in the order that its name promises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling import routing
from scheduling.policy import ReplicaView
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import Candidate, EngineLimits, Slo

MODEL = TimeModel(((0.02, 1e-4, 0.0, 1e-8, 0.0, 0.0),))
LIMITS = EngineLimits(2048, 64, 16, 1000, 8192)


def view(prefills: int = 0, tpot_s: float = 0.1, free: int = 1000, cached: int = 0) -> ReplicaView:
    """A replica with this many promised prompts of 500 tokens."""
    table = RequestTable()
    for k in range(prefills):
        table.add(f"{k}", prompt_tokens=500, prefill_deadline_s=5.0, tpot_s=tpot_s)
    return ReplicaView("r", table, free, MODEL, LIMITS, cached_tokens={"new": cached})


NEW = Candidate("new", 0.0, 800, Slo(2.0, 0.1), 50, 100)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1000), st.integers(0, 700)), max_size=12), st.integers(1, 6)
)
@settings(max_examples=100, deadline=None)
def test_a_bounded_list_of_distinct_replicas(drawn: list[tuple[int, int, int]], limit: int) -> None:
    views = [view(prefills, free=free, cached=cached) for prefills, free, cached in drawn]
    for name in routing.ROUTING:
        order = list(routing.get(name, limit).order(0.0, NEW, views))
        assert len(order) == min(1 if name == "round-robin" else limit, len(views)), name
        assert len(set(order)) == len(order)
        assert set(order) <= set(range(len(views)))


def test_each_in_the_order_of_its_name() -> None:
    loads = [view(9), view(1), view(5)]
    assert list(routing.get("feasible-least-loaded").order(0.0, NEW, loads)) == [1, 2, 0]
    assert list(routing.get("pack").order(0.0, NEW, loads)) == [0, 2, 1]
    tight = [view(9, tpot_s=0.05), view(1), view(5)]
    assert list(routing.get("pack").order(0.0, NEW, tight)) == [2, 1, 0], "like with like"
    full = [view(9), view(1, free=10), view(5)]
    assert list(routing.get("feasible-least-loaded").order(0.0, NEW, full)) == [2, 0, 1]
    warm = [view(2, cached=600), view(1), view(5)]
    assert next(iter(routing.get("prefix-affine").order(0.0, NEW, warm))) == 0
    turns = routing.get("sequential")
    assert [list(turns.order(0.0, NEW, loads)) for _ in range(4)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
    with pytest.raises(ValueError, match="unknown routing policy"):
        routing.get("by-magic")
