"""Who is asked for whom: every request goes from target to target in its own order until one takes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import TypeVar

R = TypeVar("R", bound=Hashable)
T = TypeVar("T", bound=Hashable)


def ask(
    hops: Sequence[tuple[R, Iterable[T]]],
    plan: Callable[[T, list[R]], Collection[R]],
    place: Callable[[R, T], None],
) -> list[R]:
    """Place whoever some target takes, and return the others.

    hops: requests, each with its targets in order. plan(target, requests) says which of those whose turn it is there
    the target takes; they are asked for together, since a plan for all of them can promise more than one for each.
    place is called before the next target is asked.
    """
    if len(hops) == 1:
        return _ask_for_one(*hops[0], plan, place)
    to_ask = {request: deque(targets) for request, targets in hops}
    asking, declined = list(to_ask), []
    while asking:
        groups: dict[T, list[R]] = {}
        for request in asking:
            if to_ask[request]:
                groups.setdefault(to_ask[request].popleft(), []).append(request)
            else:
                declined.append(request)
        asking = []
        for target, group in groups.items():
            taken = plan(target, group)
            for request in group:
                if request in taken:
                    place(request, target)
                else:
                    asking.append(request)
    return declined


def _ask_for_one(
    request: R, targets: Iterable[T], plan: Callable[[T, list[R]], Collection[R]], place: Callable[[R, T], None]
) -> list[R]:
    """Ask for a request with nobody beside it, as most come."""
    for target in targets:
        if plan(target, [request]):
            place(request, target)
            return []
    return [request]
