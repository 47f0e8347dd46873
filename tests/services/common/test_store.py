from __future__ import annotations

import asyncio
import random
import socket
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.slos.v1 import worker_pb2
from scheduling.classes import APPLICATION_CLASSES, DEFAULT_CLASS
from scheduling.types import SloClass
from services.common.embedded_redis import EmbeddedRedis
from services.common.store import (
    Fenced,
    LeaseState,
    ReplicaRecord,
    Store,
    StoreSettings,
    StoreUnavailable,
    Tenant,
    TimeModelKey,
)


def record(worker_id: str = "w", incarnation: str = "one") -> ReplicaRecord:
    info = worker_pb2.WorkerInfo(worker_id=worker_id, role="both", kv_blocks=7, emulated=True, model="m")
    return ReplicaRecord("host:1", incarnation, info)


# ---- replicas


async def test_registered_worker_is_listed_with_all_it_said(store: Store) -> None:
    await store.replicas.register(record("b"), 5.0)
    await store.replicas.register(record("a"), 5.0)
    listed = await store.replicas.all()
    assert [one.worker_id for one in listed] == ["a", "b"]
    assert replace(listed[0], lease_s=0.0) == record("a")
    assert 0 < listed[0].lease_s <= 5.0
    assert not listed[0].lost


async def test_lease_that_is_not_renewed_ends_but_the_entry_stays(store: Store) -> None:
    await store.replicas.register(record(), 0.05)
    await asyncio.sleep(0.1)
    (listed,) = await store.replicas.all()
    assert listed.lost
    assert await store.replicas.renew("w", "one", 5.0) is LeaseState.LOST


async def test_renewal_tells_a_successor(store: Store) -> None:
    await store.replicas.register(record(), 5.0)
    assert await store.replicas.renew("w", "one", 5.0) is LeaseState.RENEWED
    await store.replicas.register(record(incarnation="two"), 5.0)
    assert await store.replicas.renew("w", "one", 5.0) is LeaseState.TAKEN
    await store.replicas.deregister("w", "one")
    assert [one.incarnation for one in await store.replicas.all()] == ["two"]
    await store.replicas.deregister("w", "two")
    assert await store.replicas.all() == []


async def test_removed_worker_that_lives_must_register_again(store: Store) -> None:
    await store.replicas.register(record(), 5.0)
    assert await store.replicas.remove("w")
    assert not await store.replicas.remove("w")
    assert await store.replicas.renew("w", "one", 5.0) is LeaseState.LOST


# ---- classes, tenants, time models


async def test_defaults_are_entered_once_and_never_over_an_operators_work(store: Store) -> None:
    await store.seed_defaults()
    classes = await store.slo_classes.all()
    assert classes == dict(sorted(APPLICATION_CLASSES.items()))
    assert await store.tenants.all() == {"default": Tenant("default", 1.0, DEFAULT_CLASS)}
    changed = replace(classes["coding"], tpot_s=0.02)
    await store.slo_classes.set(changed)
    assert await store.slo_classes.remove("tool")
    assert not await store.slo_classes.remove("tool")
    await store.seed_defaults()
    after = await store.slo_classes.all()
    assert after["coding"] == changed
    assert "tool" not in after


async def test_class_and_tenant_survive_the_journey(store: Store) -> None:
    slo_class = SloClass("x", 0.1, ttft_s=1.5, thinking_tpot_s=0.05, inner_tpot_s=0.04, value=2.0, description="ü")
    await store.slo_classes.set(slo_class)
    assert await store.slo_classes.all() == {"x": slo_class}
    await store.tenants.set(Tenant("t", 3.0, "x"))
    assert await store.tenants.all() == {"t": Tenant("t", 3.0, "x")}
    assert await store.tenants.remove("t")


async def test_time_models_are_kept_by_what_they_belong_to(store: Store) -> None:
    key = TimeModelKey("m", "cpu", "dtype=float16")
    assert await store.time_models.get(key) is None
    await store.time_models.set(key, "{}")
    assert await store.time_models.get(key) == "{}"
    assert await store.time_models.get(replace(key, hardware="gpu")) is None
    assert await store.time_models.all() == {key: "{}"}
    assert await store.time_models.remove(key)
    assert await store.time_models.all() == {}


# ---- leadership


async def test_one_leader_at_a_time_with_growing_tokens(store: Store) -> None:
    first = await store.leader.acquire("a", 5.0)
    assert first is not None
    assert await store.leader.acquire("b", 5.0) is None
    assert await store.leader.holder() == first
    await store.leader.release(first)
    second = await store.leader.acquire("b", 5.0)
    assert second is not None
    assert second.fencing_token > first.fencing_token
    assert await store.leader.fence() == second.fencing_token
    assert not await store.leader.renew(first, 5.0)
    await store.leader.release(first)
    assert await store.leader.holder() == second


async def test_lock_that_only_expired_is_taken_up_again(store: Store) -> None:
    lease = await store.leader.acquire("a", 0.05)
    assert lease is not None
    await asyncio.sleep(0.1)
    assert await store.leader.holder() is None
    assert await store.leader.renew(lease, 5.0)
    assert await store.leader.holder() == lease


async def test_token_grows_even_when_redis_loses_its_data(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    own = Store(StoreSettings(url=server.url))
    try:
        first = await own.leader.acquire("a", 5.0)
        await asyncio.sleep(0.005)
        await own.connection.redis.flushall()
        second = await own.leader.acquire("b", 5.0)
        assert first is not None
        assert second is not None
        assert second.fencing_token > first.fencing_token
    finally:
        await own.close()
        server.stop()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30))
def test_leadership_is_exclusive_whatever_happens(redis_server: EmbeddedRedis, seed: int) -> None:
    """Random acquisitions, renewals and releases against a model in which locks do not expire."""

    async def check() -> None:
        draw = random.Random(seed)
        own = Store(StoreSettings(url=redis_server.url, prefix=uuid.uuid4().hex))
        holder, newest = None, 0
        leases = []
        for _ in range(40):
            action = draw.choice(["acquire", "renew", "release"])
            if action == "acquire":
                lease = await own.leader.acquire(f"c{draw.randint(0, 3)}", 30.0)
                assert (lease is None) == (holder is not None)
                if lease:
                    assert lease.fencing_token > newest
                    holder, newest = lease, lease.fencing_token
                    leases.append(lease)
            elif leases:
                lease = draw.choice(leases)
                if action == "renew":
                    assert await own.leader.renew(lease, 30.0) == (lease.fencing_token == newest)
                    holder = lease if lease.fencing_token == newest else holder
                else:
                    await own.leader.release(lease)
                    holder = None if lease == holder else holder
            assert await own.leader.holder() == holder
        await own.close()

    asyncio.run(check())


# ---- journal and queue


async def test_journal_holds_a_request_from_open_to_close(store: Store) -> None:
    journal = store.journal
    assert await journal.open("r", {"prompt": [1, 2]})
    assert await journal.open("r", {"prompt": [1, 2]}), "a repeated call changes nothing"
    assert not await journal.open("r", {"prompt": [3]})
    await journal.append({"r": {0: {"t": [5]}, 1: {"t": [6, 7]}}})
    await journal.append({"r": {1: {"t": [6, 7]}, 3: {"t": [8]}}})
    (held,) = await journal.list_open()
    assert held.header == {"prompt": [1, 2]}
    assert held.entries == {0: {"t": [5]}, 1: {"t": [6, 7]}, 3: {"t": [8]}}
    assert held.closing is None
    await journal.close("r", {"why": "done"})
    assert await journal.list_open() == []
    closed = await journal.get("r")
    assert closed is not None
    assert closed.closing == {"why": "done"}
    assert await journal.list_recent(10) == [closed]
    await journal.append({"r": {9: {}}, "never": {0: {}}})
    assert await journal.get("r") == closed
    assert await journal.get("never") is None
    assert await journal.open("r", {}), "the id of a finished request may be used again"
    assert await journal.list_recent(10) == []


async def test_finished_journals_go_after_their_time(store: Store) -> None:
    await store.journal.open("r", {})
    await store.journal.close("r", {}, keep_s=0.05)
    await asyncio.sleep(0.1)
    assert await store.journal.get("r") is None
    assert await store.journal.list_recent(10) == []
    assert await store.journal.open("r", {})


async def test_recent_requests_come_newest_first_and_limited(store: Store) -> None:
    for number in range(5):
        await store.journal.open(f"r{number}", {})
        await store.journal.close(f"r{number}", {})
    assert [one.request_id for one in await store.journal.list_recent(3)] == ["r4", "r3", "r2"]


async def test_deposed_leader_writes_nothing(store: Store) -> None:
    old = await store.leader.acquire("a", 5.0)
    assert old is not None
    token = old.fencing_token
    assert await store.journal.open("r", {}, token)
    await store.leader.release(old)
    new = await store.leader.acquire("b", 5.0)
    assert new is not None
    for write in (
        store.journal.open("s", {}, token),
        store.journal.append({"r": {0: {}}}, token),
        store.journal.close("r", {}, token),
    ):
        with pytest.raises(Fenced):
            await write
    (held,) = await store.journal.list_open()
    assert (held.request_id, held.entries) == ("r", {})
    await store.journal.append({"r": {0: {}}}, new.fencing_token)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30))
def test_journal_is_what_was_written_in_any_order_and_number_of_times(redis_server: EmbeddedRedis, seed: int) -> None:
    async def check() -> None:
        draw = random.Random(seed)
        own = Store(StoreSettings(url=redis_server.url, prefix=uuid.uuid4().hex))
        wanted: dict[str, dict[int, dict[str, object]]] = {f"r{n}": {} for n in range(3)}
        for request_id in wanted:
            await own.journal.open(request_id, {"id": request_id})
        for _ in range(20):
            batch: dict[str, dict[int, dict[str, object]]] = {}
            for request_id in draw.sample(sorted(wanted), draw.randint(1, 3)):
                fresh = {len(wanted[request_id]): {"t": draw.choices(range(9), k=3)}}
                again = {k: v for k, v in wanted[request_id].items() if draw.random() < 0.3}
                wanted[request_id] |= fresh
                batch[request_id] = {**fresh, **again}
            await own.journal.append(batch)
        held = {one.request_id: one.entries for one in await own.journal.list_open()}
        assert held == wanted
        await own.close()

    asyncio.run(check())


async def test_queue_is_first_in_first_out_by_arrival(store: Store) -> None:
    queue = store.best_effort
    for request_id, arrived in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        await queue.push(request_id, arrived)
    assert await queue.all() == ["a", "b", "c"]
    await queue.remove(["b", "unknown"])
    await queue.remove([])
    assert await queue.all() == ["a", "c"]
    assert await queue.size() == 2


# ---- the connection


async def test_prefixes_keep_clusters_apart(store: Store, redis_server: EmbeddedRedis) -> None:
    await store.seed_defaults()
    other = Store(StoreSettings(url=redis_server.url, prefix=f"test-{uuid.uuid4().hex}"))
    assert await other.slo_classes.all() == {}
    await other.close()


async def test_dead_redis_is_said_at_once_and_forgotten_when_it_is_back(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", password="secret word")
    server.start()
    own = Store(StoreSettings(url=server.url))
    try:
        await own.seed_defaults()
        server.kill()
        for call in (own.ping, own.replicas.all, own.slo_classes.all, own.journal.list_open, own.leader.holder):
            with pytest.raises(StoreUnavailable, match=r"does not answer.*start it or correct") as caught:
                await call()
            assert "secret" not in str(caught.value)
        assert not own.available
        server.start()
        await own.ping()
        assert own.available
    finally:
        await own.close()
        server.stop()


async def test_server_that_does_not_answer_is_given_up_in_bounded_time() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        own = Store(
            StoreSettings(url=f"redis://127.0.0.1:{deaf.getsockname()[1]}/0", connect_timeout_s=0.1, call_timeout_s=0.1)
        )
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await own.ping()
        assert time.monotonic() - began < 5.0
        await own.close()


async def test_wrong_password_is_named(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", password="right")
    server.start()
    try:
        for login in ("", ":wrong@"):
            own = Store(StoreSettings(url=server.url.replace(":right@", login)))
            with pytest.raises(StoreUnavailable, match=r"refuses our login.*right password"):
                await own.ping()
            await own.close()
    finally:
        server.stop()


async def test_cancelled_caller_ends_at_once_and_harms_no_other(store: Store) -> None:
    async def forever() -> None:
        while True:
            await store.replicas.renew("nobody", "none", 1.0)

    draw = random.Random(1)
    for _ in range(40):
        task = asyncio.create_task(forever())
        await asyncio.sleep(draw.random() * 0.003)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5.0)
        assert done
        await store.ping()


async def test_many_calls_at_once_share_the_connections(store: Store) -> None:
    opened = await asyncio.gather(*(store.journal.open(f"r{number}", {}) for number in range(500)))
    assert all(opened)
    assert len(await store.journal.list_open()) == 500


def test_wrong_url_is_named_without_its_password() -> None:
    with pytest.raises(ValueError, match="rediss://") as caught:
        Store(StoreSettings(url="http://:secret@host/0"))
    assert "secret" not in str(caught.value)
