"""The registry of replicas against a worker that comes and goes as the test says, on a real Redis."""

from __future__ import annotations

import asyncio

import pytest

from services.common.store import ReplicaRecord, Store
from services.controller.contract import ApiError
from services.controller.link import LinkTimes
from services.controller.replica_events import ReplicaState
from services.controller.replicas import ReplicaManager, ReplicaSettings
from tests.services.controller.peer import Peer, info, listening
from tests.services.controller.test_replica import CHANNEL, HELLO, Record, check, until


async def test_a_replica_whose_link_broke_a_moment_ago_is_not_struck_off(store: Store) -> None:
    peer = Peer()
    settings = ReplicaSettings(poll_s=0.1, stream_grace_s=2.0, link=LinkTimes(connect_s=2.0, ping_s=0.1, silence_s=5.0))
    async with listening(peer) as address:
        record = ReplicaRecord(address, "one", info())
        await store.replicas.register(record, lease_s=60.0)
        manager = ReplicaManager(store, HELLO, check, CHANNEL, lambda: None, settings)
        following = asyncio.create_task(manager.run(Record()))
        try:
            await until(lambda: manager.usable("tiny"))
            with pytest.raises(ApiError, match="is ready and holds 0 requests; drain it first"):
                await manager.remove("peer")
            peer.open.clear()  # it accepts the next stream, and is slow to answer
            peer.hang_up()
            await until(lambda: manager.require("peer").state is ReplicaState.CONNECTING)
            with pytest.raises(ApiError, match="its link broke"):
                await manager.remove("peer")
            await until(lambda: manager.require("peer").state is ReplicaState.LOST)
            await manager.remove("peer")
            await store.replicas.register(record, lease_s=60.0)
            await asyncio.sleep(5 * settings.poll_s)
            assert manager.get("peer") is None
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await manager.close()
