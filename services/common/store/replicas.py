"""The replica registry: who serves, where, and who has gone silent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf import json_format

from protos.slos.v1 import worker_pb2
from services.common.store.connection import StoreConnection
from services.common.store.keys import Keys

# KEYS: lease, replicas. ARGV: incarnation, worker id, lease in ms. Answers: "renewed", "lost" or "taken".
_RENEW = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 'taken' end
if not holder or redis.call('HEXISTS', KEYS[2], ARGV[2]) == 0 then return 'lost' end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 'renewed'
"""

# KEYS: lease, replicas. ARGV: incarnation, worker id. A successor's entry stays.
_DEREGISTER = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
return redis.call('HDEL', KEYS[2], ARGV[2])
"""


class LeaseState(StrEnum):
    """What became of a lease that was to be renewed."""

    RENEWED = "renewed"
    LOST = "lost"
    """It expired or Redis lost it: register again."""
    TAKEN = "taken"
    """Another process has registered under this worker id: stop."""


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """One registered worker.

    address: host:port of the worker API. incarnation: a fresh word for each start of the process.
    lease_s: seconds until the lease ends; 0 when it has ended, so that the worker counts as lost. Not stored.
    """

    address: str
    incarnation: str
    info: worker_pb2.WorkerInfo
    lease_s: float = 0.0

    @property
    def worker_id(self) -> str:
        """Unique name of the worker."""
        return self.info.worker_id

    @property
    def lost(self) -> bool:
        """The lease has ended without the worker's goodbye."""
        return self.lease_s <= 0


class Replicas:
    """Workers register here and keep a lease; whoever lets it end is lost but stays listed until removed."""

    def __init__(self, connection: StoreConnection, keys: Keys) -> None:
        """Share the connection."""
        self._connection = connection
        self._keys = keys
        self._renew = connection.redis.register_script(_RENEW)
        self._deregister = connection.redis.register_script(_DEREGISTER)

    async def register(self, record: ReplicaRecord, lease_s: float) -> None:
        """Enter or replace a worker and start its lease; a restarted worker takes over its own old entry."""
        text = json.dumps(
            {
                "address": record.address,
                "incarnation": record.incarnation,
                "info": json_format.MessageToDict(record.info, preserving_proto_field_name=True),
            }
        )
        pipeline = self._connection.redis.pipeline(transaction=True)
        pipeline.hset(self._keys.replicas, record.worker_id, text)
        pipeline.set(self._keys.lease(record.worker_id), record.incarnation, px=int(lease_s * 1000))
        await self._connection.run(pipeline.execute())

    async def renew(self, worker_id: str, incarnation: str, lease_s: float) -> LeaseState:
        """Prolong a lease."""
        answer = await self._connection.run(
            self._renew(
                keys=[self._keys.lease(worker_id), self._keys.replicas],
                args=[incarnation, worker_id, int(lease_s * 1000)],
            )
        )
        return LeaseState(answer)

    async def deregister(self, worker_id: str, incarnation: str) -> None:
        """Say goodbye; does nothing when a successor has registered under the same id."""
        await self._connection.run(
            self._deregister(
                keys=[self._keys.lease(worker_id), self._keys.replicas],
                args=[incarnation, worker_id],
            )
        )

    async def remove(self, worker_id: str) -> bool:
        """Strike a worker from the list whatever its state; False when it was not there. A live one registers again."""
        pipeline = self._connection.redis.pipeline(transaction=True)
        pipeline.hdel(self._keys.replicas, worker_id)
        pipeline.delete(self._keys.lease(worker_id))
        removed, _ = await self._connection.run(pipeline.execute())
        return bool(removed)

    async def all(self) -> list[ReplicaRecord]:
        """Every worker that is registered, live or lost, by id."""
        texts: dict[str, str] = await self._connection.run(self._connection.redis.hgetall(self._keys.replicas))
        if not texts:
            return []
        pipeline = self._connection.redis.pipeline(transaction=False)
        for worker_id in texts:
            pipeline.pttl(self._keys.lease(worker_id))
        leases: list[int] = await self._connection.run(pipeline.execute())
        records = [
            _parse(text, max(0.0, lease_ms / 1000)) for text, lease_ms in zip(texts.values(), leases, strict=True)
        ]
        return sorted(records, key=lambda record: record.worker_id)


def _parse(text: str, lease_s: float) -> ReplicaRecord:
    fields = json.loads(text)
    # A newer worker may have fields that this process does not know.
    info = json_format.ParseDict(fields["info"], worker_pb2.WorkerInfo(), ignore_unknown_fields=True)
    return ReplicaRecord(fields["address"], fields["incarnation"], info, lease_s)
