"""What a worker does for each command of its controller."""

from __future__ import annotations

import asyncio
import logging
import time

from engine.protocol import EngineError, RequestRejected
from protos.slos.v1 import worker_pb2
from services.common import clock
from services.worker_host import wire
from services.worker_host.event_log import KeptEvent
from services.worker_host.host import WorkerHost
from services.worker_host.session import Session

log = logging.getLogger(__name__)


class Commands:
    """Carries commands out one after the other, those of a replaced stream before those of its successor."""

    def __init__(self, host: WorkerHost) -> None:
        """Act on this host."""
        self._host = host
        self._one_at_a_time = asyncio.Lock()

    async def carry_out(self, session: Session, command: worker_pb2.Command) -> None:
        """Do what a command says; what cannot be done is answered with Rejected. EngineError: the engine is dead."""
        received_s = time.monotonic()
        async with self._one_at_a_time:
            try:
                await self._dispatch(session, command, received_s)
            except EngineError:
                raise
            except Exception as error:
                # One command that hits a defect must not take the others' stream down.
                log.exception("a command failed")
                request_id = command.submit.request_id
                self._reject(request_id, "INTERNAL", f"the worker failed on this command: {error!r}; see its log")

    async def _dispatch(self, session: Session, command: worker_pb2.Command, received_s: float) -> None:
        match command.WhichOneof("command"):
            case "submit":
                await self._submit(session, command.submit, received_s)
            case "cancel":
                await self._host.engine.cancel(command.cancel.request_id)
            case "hand_over":
                await self._host.engine.hand_over(command.hand_over.request_id, command.hand_over.kv_handle)
            case "promote":
                await self._promote(session, command.promote, received_s)
            case "relegate":
                await self._host.engine.relegate(command.relegate.request_id)
            case "drain":
                self._host.drain(command.drain.draining)
            case "set_role":
                self._set_role(command.set_role.role)
            case "configure":
                await self._configure(command.configure)
            case "ack":
                self._host.events.acknowledge(command.ack.event)
            case "ping":
                session.rtt_s = command.ping.rtt_us / clock.MICROSECONDS
                session.send(KeptEvent(worker_pb2.Event(pong=worker_pb2.Pong(nonce=command.ping.nonce))))
            case "hello":
                self._reject("", "FAILED_PRECONDITION", "Hello comes once, as the first command")
            case _:
                self._reject("", "UNIMPLEMENTED", "the command is empty, malformed or newer than this worker")

    async def _submit(self, session: Session, submit: worker_pb2.Submit, received_s: float) -> None:
        host, request_id = self._host, submit.request_id
        if request_id in host.requests:
            self._reject(request_id, "ALREADY_EXISTS", f"request {request_id!r} is on this worker already")
            return
        if host.info.draining:
            self._reject(request_id, "UNAVAILABLE", f"worker {host.info.worker_id} is draining")
            return
        # Counted before the engine has it: its first update may come before submit() returns.
        host.opened(request_id)
        try:
            await host.engine.submit(wire.engine_request(submit, received_s, session.rtt_s))
        except RequestRejected as error:
            host.closed(request_id)
            self._reject(request_id, error.code, error.reason)
        except BaseException:
            host.closed(request_id)
            raise

    async def _promote(self, session: Session, promote: worker_pb2.Promote, received_s: float) -> None:
        first_due_s = clock.due_s(promote.ttft_remaining_us, received_s, session.rtt_s)
        next_due_s = None
        if promote.HasField("next_token_remaining_us"):
            next_due_s = clock.due_s(promote.next_token_remaining_us, received_s, session.rtt_s)
        await self._host.engine.promote(promote.request_id, first_due_s, next_due_s)

    def _set_role(self, role: str) -> None:
        if role in wire.ROLES:
            self._host.set_role(role)
        else:
            self._reject("", "INVALID_ARGUMENT", f"unknown role {role!r}; use one of {', '.join(wire.ROLES)}")

    async def _configure(self, configure: worker_pb2.Configure) -> None:
        try:
            await self._host.engine.configure(wire.step_settings(configure))
        except RequestRejected as error:
            self._reject("", error.code, error.reason)
        except EngineError as error:
            self._reject("", "INVALID_ARGUMENT", str(error))

    def _reject(self, request_id: str, code: str, reason: str) -> None:
        log.info("rejected", extra={"request": request_id, "code": code, "reason": reason})
        self._host.emit(wire.rejected(request_id, code, reason))
