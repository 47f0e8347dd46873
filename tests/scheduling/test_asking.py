"""Requests go from target to target until one takes them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduling.asking import ask


def test_those_whose_turn_it_is_are_asked_for_together_and_placed_before_the_next_target() -> None:
    seen: list[tuple[str, list[str]]] = []
    placed: dict[str, str] = {}

    def plan(target: str, requests: list[str]) -> set[str]:
        seen.append((target, [*requests, *sorted(placed)]))
        return {"a"} if target == "x" else set(requests) - {"d"}

    hops = [("a", "xy"), ("b", "xy"), ("c", "y"), ("d", "yx"), ("e", "")]
    assert ask(hops, plan, placed.__setitem__) == ["e", "d"]
    assert placed == {"a": "x", "b": "y", "c": "y"}
    assert seen == [("x", ["a", "b"]), ("y", ["c", "d", "a"]), ("y", ["b", "a", "c"]), ("x", ["d", "a", "b", "c"])]


@given(st.lists(st.lists(st.integers(0, 3), max_size=4, unique=True), max_size=8), st.lists(st.integers(0, 3)))
def test_everybody_ends_at_the_first_target_with_room_or_is_declined(orders: list[list[int]], full: list[int]) -> None:
    placed: dict[int, int] = {}
    plan = lambda target, requests: [] if target in full else requests  # noqa: E731
    declined = ask(list(enumerate(orders)), plan, placed.__setitem__)
    for request, order in enumerate(orders):
        expected = next((target for target in order if target not in full), None)
        assert placed.get(request) == expected
        assert (request in declined) == (expected is None)
