"""All replicas: follows the registry, keeps one link per worker, and decides when one is lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc

from protos.slos.v1 import client_pb2, worker_pb2
from services.common.store import ReplicaRecord, Store, StoreUnavailable
from services.controller.contract import ApiError
from services.controller.learned_margin import LearnedMargin
from services.controller.ledger import is_complete
from services.controller.link import LinkTimes
from services.controller.replica import Replica
from services.controller.replica_events import ReplicaEvents, ReplicaState
from services.controller.request import LiveRequest
from services.controller.targets import why_alone

log = logging.getLogger(__name__)

TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """Times in seconds. stream_grace_s: how long a broken stream may take to come back before requests move on."""

    poll_s: float = 1.0
    stream_grace_s: float = 1.0
    link: LinkTimes = field(default_factory=LinkTimes)


class ReplicaManager:
    """Replicas by worker id."""

    def __init__(
        self,
        store: Store,
        make_hello: Callable[[], worker_pb2.Hello],
        check: Callable[[worker_pb2.WorkerInfo], str],
        make_channel: Callable[[str], grpc.aio.Channel],
        make_margin: Callable[[], LearnedMargin | None],
        settings: ReplicaSettings,
    ) -> None:
        """Prepare; `run` does the work."""
        self._store = store
        self._make_hello = make_hello
        self._check = check
        self._make_channel = make_channel
        self._make_margin = make_margin
        self._settings = settings
        self._replicas: dict[str, Replica] = {}
        self._struck_off: set[str] = set()

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())

    def get(self, worker_id: str) -> Replica | None:
        """Replica by worker id."""
        return self._replicas.get(worker_id)

    def require(self, worker_id: str) -> Replica:
        """Replica by worker id; ApiError NOT_FOUND names the ones there are."""
        replica = self._replicas.get(worker_id)
        if replica is None:
            known = ", ".join(sorted(self._replicas)) or "none"
            raise ApiError("NOT_FOUND", f"there is no replica {worker_id!r}; known: {known}", param="replica")
        return replica

    def usable(self, model: str) -> list[Replica]:
        """Replicas that take new work of this model, by id."""
        found = [replica for replica in self if replica.usable and replica.info.model == model]
        return sorted(found, key=lambda replica: replica.worker_id)

    def awaited(self, model: str) -> list[Replica]:
        """Replicas of this model that have served before and may take work in a moment: at most their link broke."""
        return [replica for replica in self if replica.info.model == model and replica.awaited]

    def models(self) -> list[client_pb2.Model]:
        """Models that any known replica serves."""
        models: dict[str, client_pb2.Model] = {}
        for replica in self:
            if replica.state in (ReplicaState.REFUSED, ReplicaState.LOST):
                continue
            model = models.setdefault(replica.info.model, client_pb2.Model(name=replica.info.model))
            model.max_model_len = max(model.max_model_len, replica.info.max_model_len)
            model.ready_replicas += replica.usable
        return [models[name] for name in sorted(models)]

    def why_none(self, model: str) -> str:
        """Say for people why no replica of this model takes work."""
        states = [
            f"{replica.worker_id} is {replica.state}{': ' + replica.problem if replica.problem else ''}"
            for replica in self
            if replica.info.model == model or replica.state is ReplicaState.REFUSED
        ]
        if not states:
            return f"no worker has registered for model {model}; start one"
        return f"no replica of model {model} is ready ({'; '.join(sorted(states))})"

    def ended(self, request: LiveRequest) -> None:
        """Let the replicas that served a promised request learn from its end, unless another one was lost under it."""
        if not request.promised or request.attempts or not is_complete(request):
            return
        for worker_id in {request.replica, request.prefill_replica}:
            replica = self._replicas.get(worker_id)
            if replica is not None:
                replica.promise_ended(request.outcome is not None and request.outcome.promise_kept)

    async def run(self, events: ReplicaEvents) -> None:
        """Follow the registry until cancelled; events: told of what happens on replicas."""
        next_poll_s = 0.0
        while True:
            now_s = time.monotonic()
            if now_s >= next_poll_s:
                try:
                    await self._follow(await self._store.replicas.all(), events)
                except StoreUnavailable as error:
                    log.debug("registry not read: %s", error)
                next_poll_s = time.monotonic() + self._settings.poll_s
            self._give_up_on_silent(time.monotonic())
            self._say_who_is_alone()
            await asyncio.sleep(TICK_S)

    async def close(self) -> None:
        """Close every link; workers keep running what they have."""
        await asyncio.gather(*(replica.close() for replica in self))

    async def remove(self, worker_id: str) -> None:
        """Strike a replica off; ApiError FAILED_PRECONDITION while it serves, or may again in a moment."""
        replica = self.require(worker_id)
        if replica.awaited or replica.placed.requests:
            link = "" if replica.link.connected else " (its link broke; back or lost in a moment)"
            raise ApiError(
                "FAILED_PRECONDITION",
                f"replica {worker_id} is {replica.state}{link} and holds {len(replica.placed.requests)} requests; "
                "drain it first and wait until it is drained",
            )
        await self._store.replicas.remove(worker_id)
        # A worker that lives enters itself again; only a restarted one is taken back.
        self._struck_off.add(replica.incarnation)
        await self._drop(replica)

    async def _follow(self, records: list[ReplicaRecord], events: ReplicaEvents) -> None:
        for record in records:
            replica = self._replicas.get(record.worker_id)
            if replica is None:
                if not record.lost and record.incarnation not in self._struck_off:
                    self._add(record, events)
                continue
            if replica.link.connected:
                continue
            if record.lost:
                if replica.state is not ReplicaState.LOST:
                    replica.give_up("its lease in the registry has ended")
            elif record.address != replica.link.address or record.incarnation != replica.incarnation:
                replica.link.address = record.address
                replica.link.retry_now()
        listed = {record.worker_id for record in records}
        for replica in list(self):
            if replica.worker_id not in listed and not replica.link.connected:
                await self._drop(replica)

    def _add(self, record: ReplicaRecord, events: ReplicaEvents) -> None:
        replica = Replica(
            record.worker_id,
            record.address,
            record.info,
            events,
            self._make_hello,
            self._check,
            self._make_channel,
            self._settings.link,
            self._make_margin(),
        )
        self._replicas[record.worker_id] = replica
        replica.start()

    async def _drop(self, replica: Replica) -> None:
        del self._replicas[replica.worker_id]
        if replica.placed.requests or replica.placed.legs:
            replica.give_up("it has left the registry")
        await replica.close()
        log.info("worker %s has left", replica.worker_id)

    def _give_up_on_silent(self, now_s: float) -> None:
        for replica in self:
            if (
                not replica.link.connected
                and replica.state is ReplicaState.CONNECTING
                and replica.incarnation
                and now_s - replica.disconnected_s > self._settings.stream_grace_s
            ):
                replica.give_up(f"no stream for {now_s - replica.disconnected_s:.1f} s ({replica.problem})")

    def _say_who_is_alone(self) -> None:
        """Tell people of workers that no other one can exchange KV with, when that becomes so."""
        for model in self.models():
            usable = self.usable(model.name)
            for replica in usable:
                why = why_alone(replica, usable)
                if why and why != replica.alone:
                    log.error("worker %s serves alone: %s", replica.worker_id, why)
                replica.alone = why
