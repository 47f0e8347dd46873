"""Where a request of the simulated cluster can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scheduling.pairs import Route
from simulation.replica import Replica


class Target(NamedTuple):
    """decode produces the tokens; prefill computes the prompt's KV for it, None where decode does so itself."""

    decode: Replica
    prefill: Replica | None = None

    @staticmethod
    def of(route: Route, replicas: Sequence[Replica]) -> Target:
        """The replicas of a route."""
        return Target(replicas[route.decode], None if route.prefill is None else replicas[route.prefill])

    def hosts_hope(self) -> bool:
        """Whether a hopeful request is on one of the replicas."""
        return self.decode.table.hosts_hope() or (self.prefill is not None and self.prefill.table.hosts_hope())
