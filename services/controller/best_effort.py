"""Best-effort requests that wait for a replica: bounded, first in first out within a tenant, ageing across tenants."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from services.controller.request import LiveRequest


class BestEffortQueue:
    """A tenant's oldest request goes first; between tenants the one whose age times weight is largest.

    Every request ages, so a light tenant waits longer but never for ever.
    """

    def __init__(self, capacity: int) -> None:
        """capacity: requests that may wait; those that come back from a lost replica are taken beyond it."""
        if capacity < 0:
            raise ValueError(f"the best-effort queue cannot hold {capacity} requests")
        self.capacity = capacity
        self._by_tenant: dict[tuple[str, str], OrderedDict[str, LiveRequest]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[LiveRequest]:
        """Every request, oldest first within each tenant."""
        for waiting in self._by_tenant.values():
            yield from waiting.values()

    @property
    def full(self) -> bool:
        """No new request can wait."""
        return self._size >= self.capacity

    def push(self, request: LiveRequest) -> None:
        """Let a request wait, in the order of arrival; one that waits already stays where it is."""
        waiting = self._by_tenant.setdefault((request.call.model, request.tenant), OrderedDict())
        if request.request_id in waiting:
            return
        waiting[request.request_id] = request
        self._size += 1
        newer = [other for other in reversed(waiting.values()) if other.arrival_s > request.arrival_s]
        for other in reversed(newer):
            waiting.move_to_end(other.request_id)

    def remove(self, request: LiveRequest) -> bool:
        """Take a request out; False when it was not waiting."""
        key = (request.call.model, request.tenant)
        waiting = self._by_tenant.get(key)
        if waiting is None or waiting.pop(request.request_id, None) is None:
            return False
        self._size -= 1
        if not waiting:
            del self._by_tenant[key]
        return True

    def first(self, model: str, now_s: float, weights: dict[str, float]) -> LiveRequest | None:
        """Request of this model that goes next; it stays in the queue. weights: by tenant, 1 where none is given."""
        best: LiveRequest | None = None
        best_age = -1.0
        for (of_model, tenant), waiting in self._by_tenant.items():
            if of_model != model:
                continue
            request = next(iter(waiting.values()))
            age = max(0.0, now_s - request.arrival_s) * weights.get(tenant, 1.0)
            if age > best_age:
                best, best_age = request, age
        return best

    def models(self) -> set[str]:
        """Models that requests wait for."""
        return {model for model, _ in self._by_tenant}
