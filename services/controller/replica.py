"""One worker as the controller knows it: its link, its mirror, the requests placed on it, and what it is good for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import grpc

from protos.slos.v1 import worker_pb2
from scheduling.time_model import TimeModel
from services.controller.fit import why_unintelligible
from services.controller.learned_margin import LearnedMargin
from services.controller.link import LinkRefused, LinkTimes, WorkerLink
from services.controller.mirror import ReplicaMirror
from services.controller.placements import Placements
from services.controller.replica_events import ReplicaEvents, ReplicaState
from services.controller.step_record import StepRecord

log = logging.getLogger(__name__)


class Replica:
    """Owner of the link to one worker; requests are put on it through `placed` and leave it by events."""

    def __init__(
        self,
        worker_id: str,
        address: str,
        info: worker_pb2.WorkerInfo,
        events: ReplicaEvents,
        make_hello: Callable[[], worker_pb2.Hello],
        check: Callable[[worker_pb2.WorkerInfo], str],
        make_channel: Callable[[str], grpc.aio.Channel],
        times: LinkTimes | None = None,
        margin: LearnedMargin | None = None,
    ) -> None:
        """Prepare; `start` connects. check says why a worker's info does not fit, or nothing.

        margin: learns from this replica; None: times are planned as predicted.
        """
        self.worker_id = worker_id
        self.info = info
        self.state = ReplicaState.CONNECTING
        self.problem = ""
        self.alone = ""
        """Why a usable worker with one role has no counterpart, where one of the other role is there."""
        self.incarnation = ""
        self.last_event = 0
        self.acknowledged = 0
        self.steps = StepRecord()
        self.disconnected_s = time.monotonic()
        self.draining = False
        self._missing: set[str] = set()
        self._replaying = True
        self._strange_replay = False
        self._events = events
        self._make_hello = make_hello
        self._check = check
        self.link = WorkerLink(address, self, make_channel, times)
        self.placed = Placements(worker_id, self.link)
        self.margin = margin
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.create_task(self.link.run(), name=f"link {self.worker_id}")

    async def close(self) -> None:
        """Close the stream; the worker keeps running what it has."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def usable(self) -> bool:
        """New work may be placed here."""
        ready = self.state is ReplicaState.READY and self.link.connected and self.mirror is not None
        return ready and not self._replaying

    @property
    def awaited(self) -> bool:
        """It has served and takes work, or may in a moment: at most its link broke."""
        return self.mirror is not None and self.state in (ReplicaState.CONNECTING, ReplicaState.READY)

    @property
    def mirror(self) -> ReplicaMirror | None:
        """Picture of the engine; None before the first connection."""
        return self.placed.mirror

    # ---- commands

    def drain(self, draining: bool) -> None:
        """Stop or resume taking new work."""
        self.draining = draining
        self.info.draining = draining
        self.link.send(worker_pb2.Command(drain=worker_pb2.Drain(draining=draining)))
        self._settle()

    def set_role(self, role: str) -> None:
        """Ask the worker to change its role."""
        self.link.send(worker_pb2.Command(set_role=worker_pb2.SetRole(role=role)))

    def promise_ended(self, kept: bool) -> None:
        """Learn from a promise that this replica had its part in."""
        if self.margin is not None:
            self.margin.promise_ended(kept)
            self._use_margin()

    def acknowledge(self, event: int) -> None:
        """Let the worker drop its events up to this one, unless it has been told before."""
        if self.acknowledged < event <= self.last_event:
            self.acknowledged = event
            self.link.send(worker_pb2.Command(ack=worker_pb2.Ack(event=event)))

    # ---- what the link tells

    def hello(self) -> worker_pb2.Hello:
        """Greeting for the next connection."""
        hello = self._make_hello()
        hello.last_event = self.last_event
        return hello

    def welcomed(self, welcome: worker_pb2.Welcome) -> None:
        """Take a new connection; LinkRefused when the worker does not fit."""
        info = welcome.info
        problem = why_unintelligible(info) or self._check(info)
        if problem:
            raise LinkRefused(problem)
        same_process = welcome.incarnation == self.incarnation
        self._replaying = True
        # What another controller was told of may bear the names of our requests.
        self._strange_replay = not same_process
        lost_events = same_process and welcome.oldest_event > self.last_event + 1
        if self.mirror is None or not same_process or lost_events:
            try:
                mirror = ReplicaMirror(self.worker_id, info)
            except ValueError as error:
                raise LinkRefused(f"the time model of worker {self.worker_id} cannot be read: {error}") from error
            if self.incarnation:
                self._displace_all("its events were lost" if same_process else "the worker was restarted")
            self.placed.mirror = mirror
            if self.margin is not None:
                self.margin.attached(mirror.model)
            self.placed.leaving.clear()
        self.steps.reattached()
        if not same_process:
            self.last_event = self.acknowledged = 0
            self.draining = False
        # A worker may drain by its own decision, or for a controller before this one.
        self.draining = self.draining or info.draining
        self.incarnation = welcome.incarnation
        self.info = info
        held = set(welcome.request_ids)
        self._missing = self.placed.reconcile(held)
        if self.draining and not info.draining:
            self.link.send(worker_pb2.Command(drain=worker_pb2.Drain(draining=True)))
        self._use_margin(again=True)
        self.problem = ""
        log.info("worker %s attached (%s, %s)", self.worker_id, info.model, info.hardware)
        self._settle(drained=self.draining and not held)

    def replayed(self) -> None:
        """Open for new work, and give up on requests whose submission was lost with the old connection."""
        self._replaying = self._strange_replay = False
        missing, self._missing = self._missing, set()
        reason = "the connection broke before the worker had it"
        for wire_id in missing:
            self._drop_leg(wire_id, reason)
        lost = [request for wire_id in missing if (request := self.placed.requests.pop(wire_id, None)) is not None]
        for request in lost:
            self.placed.gone(request.wire_id)
        if lost:
            self._events.displaced(self, lost, reason)
        self._events.changed(self)

    def handle(self, event: worker_pb2.Event, received_s: float) -> None:
        """Take a numbered event; one that was seen before is ignored."""
        if event.number:
            if event.number <= self.last_event:
                return
            self.last_event = event.number
        try:
            self._handle(event, received_s)
        except Exception:
            # Nobody knows how much of the event was taken in: what is here goes on elsewhere, from its last token.
            log.exception("failed on event %d of worker %s", event.number, self.worker_id)
            self._displace_all("the controller failed on one of its events")

    def _handle(self, event: worker_pb2.Event, received_s: float) -> None:
        kind = event.WhichOneof("event")
        if kind == "step":
            self._stepped(event.step, received_s)
        elif kind == "rejected":
            self._rejected(event.rejected)
        elif kind == "draining":
            log.warning("worker %s takes nothing new: %s", self.worker_id, event.draining.reason)
            self.draining = True
            self.problem = event.draining.reason
            self._settle()
        elif kind == "drained":
            self._settle(drained=self.draining)
        elif kind == "stopping":
            log.warning("worker %s stops: %s", self.worker_id, event.stopping.reason)
            self.problem = f"it stops: {event.stopping.reason}"
            self.state = ReplicaState.LOST
            self._displace_all("the worker stops")
        elif kind == "role_changed":
            self.info.role = event.role_changed.role
            if self.mirror is not None:
                self.mirror.role = event.role_changed.role
            self._events.changed(self)
        elif kind == "time_model_changed":
            self._refitted(event.time_model_changed)

    def broken(self, reason: str) -> None:
        """Note that there is no connection; the manager decides when the replica is lost."""
        if self.state in (ReplicaState.READY, ReplicaState.DRAINING, ReplicaState.DRAINED):
            log.warning("lost the stream to worker %s: %s", self.worker_id, reason)
            self.disconnected_s = time.monotonic()
            self.state = ReplicaState.CONNECTING
            self._events.changed(self)
        self.problem = reason

    def gone(self, reason: str) -> None:
        """Give up at once: waiting would only make the requests later."""
        if self.state is not ReplicaState.LOST and self.incarnation:
            self.give_up(reason)
        elif not self.incarnation:
            self.problem = reason

    def refused(self, reason: str) -> None:
        """Note that this worker cannot be used as it is."""
        if self.problem != reason:
            log.error("worker %s cannot be used: %s", self.worker_id, reason)
        self.state = ReplicaState.REFUSED
        self.problem = reason
        self._displace_all("the worker cannot be used any more")

    def give_up(self, reason: str) -> None:
        """Count the replica as lost; it comes back by connecting again."""
        log.warning("worker %s is lost: %s", self.worker_id, reason)
        self.state = ReplicaState.LOST
        self.problem = reason
        self._displace_all("the worker was lost")

    # ---- inside

    def _stepped(self, step: worker_pb2.Step, received_s: float) -> None:
        assert self.mirror is not None
        ended_s = self.steps.ended_s(step, received_s, self.link.rtt_s)
        self.mirror.stepped(step, ended_s)
        if self.margin is not None:
            self.margin.stepped(step)
            self._use_margin()
        if self._strange_replay:
            for update in step.requests:
                if update.finish_reason:
                    self.placed.gone(update.request_id)
            return
        for update in step.requests:
            self._missing.discard(update.request_id)
        self._events.stepped(self, step, ended_s)
        for update in step.requests:
            if not update.finish_reason:
                continue
            self.placed.requests.pop(update.request_id, None)
            leg = self.placed.legs.pop(update.request_id, None)
            self.placed.gone(update.request_id)
            if leg is not None:
                self._events.prefilled(self, leg, update, ended_s)

    def _refitted(self, changed: worker_pb2.TimeModelChanged) -> None:
        """Plan with what the worker plans with from here on."""
        log.warning("some steps of worker %s take %.2f times as long as predicted", self.worker_id, changed.drift)
        self.info.time_model_json = changed.time_model_json
        if self.mirror is None:
            return
        self.mirror.set_model(TimeModel.from_json(changed.time_model_json))
        if self.margin is not None:
            self.margin.attached(self.mirror.model)
            self._use_margin()
        self._events.changed(self)

    def _use_margin(self, again: bool = False) -> None:
        """Plan with what was learned, here and on the worker; again: a worker that may have forgotten is told."""
        if self.margin is None or self.mirror is None:
            return
        if self.margin.take() or again:
            self.mirror.set_margin(self.margin.in_force)
            configure = worker_pb2.Configure(time_margin=self.margin.in_force)
            self.link.send(worker_pb2.Command(configure=configure))

    def _rejected(self, rejected: worker_pb2.Rejected) -> None:
        self._drop_leg(rejected.request_id, rejected.reason)
        request = self.placed.requests.pop(rejected.request_id, None)
        self.placed.gone(rejected.request_id)
        if rejected.code == grpc.StatusCode.ALREADY_EXISTS.value[0]:
            # What it holds under this name is nobody's: whatever is ours was sent once.
            self.placed.take_back(rejected.request_id)
        if request is not None:
            self._events.rejected(self, request, rejected)

    def _drop_leg(self, wire_id: str, reason: str) -> None:
        """Forget a prefill half that will not be done here; other names are ignored."""
        request = self.placed.legs.pop(wire_id, None)
        if request is not None:
            request.prefill_replica = ""
            self.placed.gone(wire_id)
            self._events.prefill_lost(self, request, reason)

    def _displace_all(self, reason: str) -> None:
        requests, legs = self.placed.clear()
        for request in legs:
            self._events.prefill_lost(self, request, reason)
        if requests:
            self._events.displaced(self, requests, reason)
        self._events.changed(self)

    def _settle(self, drained: bool = False) -> None:
        if drained:
            self.state = ReplicaState.DRAINED
        else:
            self.state = ReplicaState.DRAINING if self.draining else ReplicaState.READY
        self._events.changed(self)
