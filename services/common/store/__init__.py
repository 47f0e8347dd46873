"""What the cluster keeps in Redis, one small class per kind of thing; nothing else knows a key name.

Every call is bounded in time and raises StoreUnavailable, with a text for people, when Redis does not answer; the
next call tries again, so nothing has to be rebuilt when Redis comes back.
"""

from __future__ import annotations

from collections.abc import Iterable

from scheduling.classes import APPLICATION_CLASSES
from scheduling.types import SloClass
from services.common.store.best_effort import BestEffortQueue
from services.common.store.catalog import SloClasses, Tenant, Tenants
from services.common.store.connection import StoreConnection, StoreSettings, StoreUnavailable
from services.common.store.journal import Journal, JournalRecord
from services.common.store.keys import Keys
from services.common.store.leader import Fenced, Leader, LeaderLease
from services.common.store.replicas import LeaseState, ReplicaRecord, Replicas
from services.common.store.time_models import TimeModelKey, TimeModels

__all__ = [
    "BestEffortQueue",
    "Fenced",
    "Journal",
    "JournalRecord",
    "Leader",
    "LeaderLease",
    "LeaseState",
    "ReplicaRecord",
    "Replicas",
    "SloClasses",
    "Store",
    "StoreConnection",
    "StoreSettings",
    "StoreUnavailable",
    "Tenant",
    "Tenants",
    "TimeModelKey",
    "TimeModels",
]


class Store:
    """All of it over one connection pool."""

    def __init__(self, settings: StoreSettings) -> None:
        """Prepare; nothing is sent until the first call."""
        self.connection = StoreConnection(settings)
        keys = Keys(settings.prefix)
        self.replicas = Replicas(self.connection, keys)
        self.slo_classes = SloClasses(self.connection, keys)
        self.tenants = Tenants(self.connection, keys)
        self.time_models = TimeModels(self.connection, keys)
        self.journal = Journal(self.connection, keys)
        self.best_effort = BestEffortQueue(self.connection, keys)
        self.leader = Leader(self.connection, keys)

    @property
    def available(self) -> bool:
        """Redis answered the last call."""
        return self.connection.available

    async def ping(self) -> None:
        """Ask Redis for a sign of life; StoreUnavailable when there is none."""
        await self.connection.run(self.connection.redis.ping())

    async def seed_defaults(self, slo_classes: Iterable[SloClass] = tuple(APPLICATION_CLASSES.values())) -> None:
        """Enter SLO classes (by default the shipped ones) and the default tenant, once in the life of the data."""
        await self.slo_classes.seed(slo_classes)
        await self.tenants.seed()

    async def close(self) -> None:
        """Close every connection."""
        await self.connection.close()
