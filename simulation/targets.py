"""Where a request of the simulated cluster can run: routes of scheduling.pairs, as the controller has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduling.pairs import Route, ask_order, hopeful_route, routes
from scheduling.policy import ReplicaView, RoutingPolicy
from scheduling.types import Candidate
from simulation.replica import Replica


@dataclass(frozen=True, slots=True)
class Target:
    """decode produces the tokens; prefill computes the prompt's KV for it, None where decode does so itself."""

    decode: Replica
    prefill: Replica | None = None

    @property
    def first(self) -> Replica:
        """The replica that computes the prompt."""
        return self.prefill or self.decode


class Targets:
    """The targets among replicas that are alive, as one decision sees them."""

    def __init__(self, replicas: Sequence[Replica], views: Sequence[ReplicaView]) -> None:
        """views: of these replicas, in their order; what is on its way to them counted in."""
        self._replicas = replicas
        self._ordered, self._last = routes(views)

    def ordered(self) -> list[Target]:
        """Those that routing orders."""
        return [self.target(route) for route in self._ordered]

    def ask_order(
        self, now_s: float, candidate: Candidate, views: Sequence[ReplicaView], routing: RoutingPolicy
    ) -> list[Route]:
        """Return the order for one candidate; views: with what their prefix caches hold of it."""
        return ask_order(now_s, candidate, views, self._ordered, self._last, routing)

    def hopeful_route(self, candidate: Candidate, views: Sequence[ReplicaView]) -> Route | None:
        """Return where a request that nobody can promise goes; views as for ask_order."""
        return hopeful_route(candidate, views, self._ordered)

    def target(self, route: Route) -> Target:
        """Return the replicas of a route."""
        prefill = None if route.prefill is None else self._replicas[route.prefill]
        return Target(self._replicas[route.decode], prefill)
