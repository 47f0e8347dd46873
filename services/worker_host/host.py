"""The state of a worker: which requests its engine has, what was said of them, and who listens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import grpc

from engine.protocol import Engine, StepEvent, StepSettings
from protos.slos.v1 import common_pb2, worker_pb2
from scheduling.refit import OnlineFit, RefitSettings
from scheduling.time_model import TimeModel
from services.worker_host import wire
from services.worker_host.event_log import EventLog, KeptEvent
from services.worker_host.session import Session

log = logging.getLogger(__name__)


class AttachRefused(Exception):
    """A controller may not attach; status and text say why."""

    def __init__(self, status: grpc.StatusCode, reason: str) -> None:
        """Keep both."""
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Bounds of a host; times in seconds.

    orphan_s: how long requests go on without a controller before they are cancelled. silence_s: a controller that
    sends nothing for so long, not even a ping, is taken for gone. kept_events: unacknowledged events kept at most.
    refit_drift: the time model is fitted again when the median of a kind of step, or of half of one, is off by
    this share; 0: never.
    """

    orphan_s: float = 60.0
    silence_s: float = 10.0
    kept_events: int = 20_000
    refit_drift: float = 0.1


class WorkerHost:
    """Joins one engine with the one controller that is attached."""

    def __init__(self, engine: Engine, info: worker_pb2.WorkerInfo, incarnation: str, settings: HostSettings) -> None:
        """Take a started engine."""
        self.engine = engine
        self.info = info
        self.incarnation = incarnation
        self.settings = settings
        self.events = EventLog(settings.kept_events)
        self.requests: set[str] = set()
        self.session: Session | None = None
        self.highest_fence = 0
        self.on_info_changed: Callable[[], None] = lambda: None
        self.on_step: Callable[[StepEvent], None] = lambda _: None
        self.refits = 0
        self._fit: OnlineFit | None = None
        if settings.refit_drift > 0 and info.time_model_json:
            self._fit = OnlineFit(TimeModel.from_json(info.time_model_json), RefitSettings(drift=settings.refit_drift))
        self._idle = asyncio.Event()
        self._idle.set()
        self._detached_s = time.monotonic()
        self._abandoned: set[str] = set()
        self._drained_said = False

    # ---- controllers

    def attach(self, hello: worker_pb2.Hello) -> Session:
        """Make the caller the one controller; AttachRefused when it may not be."""
        if hello.proto_version != self.info.proto_version:
            raise AttachRefused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"worker {self.info.worker_id} speaks version {self.info.proto_version} of the worker API, the "
                f"controller version {hello.proto_version}; run both from the same release",
            )
        if hello.fencing_token < self.highest_fence:
            raise AttachRefused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"a newer controller leads (fencing token {self.highest_fence}, yours {hello.fencing_token})",
            )
        old = self.session
        if old is not None:
            if old.fencing_token == hello.fencing_token and old.controller_id != hello.controller_id:
                raise AttachRefused(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"controller {old.controller_id} is attached with the same fencing token",
                )
            old.end(grpc.StatusCode.ABORTED, f"controller {hello.controller_id} has attached in this one's place")
        self.highest_fence = hello.fencing_token
        session = Session(hello)
        welcome = worker_pb2.Welcome(
            info=self.info,
            request_ids=sorted(self.requests),
            oldest_event=self.events.oldest,
            incarnation=self.incarnation,
        )
        session.send(KeptEvent(worker_pb2.Event(welcome=welcome)))
        for kept in self.events.after(hello.last_event):
            session.send(kept)
        self.session = session
        self.events.drop_oldest(False)
        log.info("controller attached", extra={"controller": hello.controller_id, "fence": hello.fencing_token})
        return session

    def detach(self, session: Session, reason: str) -> None:
        """Note the end of a stream; what runs goes on for a while."""
        if self.session is session:
            self.session = None
            self._detached_s = time.monotonic()
            log.warning("controller detached", extra={"controller": session.controller_id, "reason": reason})

    async def watch_for_orphans(self) -> None:
        """Cancel what runs when no controller has come back for too long."""
        limit_s = self.settings.orphan_s
        while True:
            await asyncio.sleep(min(1.0, limit_s / 4))
            alone = self.session is None and time.monotonic() - self._detached_s > limit_s
            if not alone:
                continue
            # Nobody may ever come for these events; they must not hold the engine up.
            self.events.drop_oldest(True)
            for request_id in self.requests - self._abandoned:
                log.warning("cancelled: no controller", extra={"request": request_id, "seconds": limit_s})
                self._abandoned.add(request_id)
                await self.engine.cancel(request_id)

    # ---- events

    async def pump(self) -> None:
        """Turn the engine's steps into events until it ends; EngineError when it dies."""
        free_blocks = -1
        async for step in self.engine.events():
            await self.events.room()
            self.on_step(step)
            # Blocks come free without a step too, when KV has left for another worker.
            if step.updates or step.batch_requests or step.free_blocks != free_blocks:
                self._record(step)
            free_blocks = step.free_blocks
            if self._fit is not None and step.shape is not None:
                refitted = self._fit.observe(step.shape, step.duration_s)
                if refitted is not None:
                    await self._plan_with(refitted.model, refitted.drift)

    def emit(self, event: worker_pb2.Event, ended_s: float | None = None) -> None:
        """Number an event, keep it, and send it when somebody listens."""
        kept = self.events.append(event, ended_s)
        if self.session is None:
            return
        self.session.send(kept)
        if len(self.events) > 2 * self.settings.kept_events:
            # Only answers to commands can get here, steps wait for room: this controller never acknowledges.
            self.session.end(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many events are not acknowledged; send Ack")

    def opened(self, request_id: str) -> None:
        """Count a request as held."""
        self.requests.add(request_id)
        self._idle.clear()

    def closed(self, request_id: str) -> None:
        """Count a request as gone."""
        self.requests.discard(request_id)
        self._abandoned.discard(request_id)
        if not self.requests:
            self._idle.set()
            self._say_drained()

    # ---- service

    def drain(self, draining: bool, own_reason: str = "") -> None:
        """Take nothing new, or go back into service; own_reason: why the worker does it by itself."""
        if self.info.draining != draining:
            self.info.draining = draining
            self._drained_said = False
            self.on_info_changed()
            if own_reason:
                self.emit(worker_pb2.Event(draining=worker_pb2.Draining(reason=own_reason)))
        self._say_drained()

    def set_role(self, role: str) -> None:
        """Take another role; what runs is not touched."""
        self.info.role = role
        self.emit(worker_pb2.Event(role_changed=worker_pb2.RoleChanged(role=role)))
        self.on_info_changed()

    async def idle(self) -> None:
        """Wait until no request is held."""
        await self._idle.wait()

    async def say_stopping(self, reason: str, timeout_s: float = 1.0) -> None:
        """Tell the controller that this worker ends, and end its stream once it has been told."""
        self.emit(worker_pb2.Event(stopping=worker_pb2.Stopping(reason=reason)))
        session = self.session
        if session is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await session.sent()
        except TimeoutError:
            log.warning("the controller did not take the last events", extra={"controller": session.controller_id})
        session.end(grpc.StatusCode.OK, "")

    def _record(self, step: StepEvent) -> None:
        # An engine may still speak of its own requests, such as those of a profile run.
        ours = tuple(update for update in step.updates if update.request_id in self.requests)
        event = wire.step_event(replace(step, updates=ours))
        for update in event.step.requests:
            abandoned = update.request_id in self._abandoned
            if abandoned and update.finish_reason == common_pb2.FINISH_REASON_CANCELLED:
                update.finish_reason = common_pb2.FINISH_REASON_ERROR
                update.error = f"cancelled by the worker: no controller for {self.settings.orphan_s:g} s"
        self.emit(event, step.ended_s)
        for update in event.step.requests:
            if update.finish_reason:
                self.closed(update.request_id)

    async def _plan_with(self, model: TimeModel, drift: float) -> None:
        """Let engine and controller plan with a model that was fitted while the engine served."""
        log.warning("some steps take %.2f times as long as predicted: the time model was fitted again", drift)
        text = model.to_json()
        await self.engine.configure(StepSettings(time_model_json=text))
        self.refits += 1
        self.info.time_model_json = text
        changed = worker_pb2.TimeModelChanged(time_model_json=text, drift=drift)
        self.emit(worker_pb2.Event(time_model_changed=changed))
        self.on_info_changed()

    def _say_drained(self) -> None:
        if self.info.draining and not self.requests and not self._drained_said:
            self._drained_said = True
            self.emit(worker_pb2.Event(drained=worker_pb2.Drained()))
