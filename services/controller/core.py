"""The controller's core while it leads: takes calls in, has them promised and served, and accounts for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import grpc

from protos.slos.v1 import client_pb2, common_pb2, worker_pb2
from scheduling.policy import Policy
from services.common.rpc import PROTO_VERSION
from services.common.store import Store
from services.controller.accounts import Accounts
from services.controller.admission import AdmissionLoop, AdmissionSettings
from services.controller.best_effort import BestEffortQueue
from services.controller.contract import ApiError, GenerationCall
from services.controller.directory import Directory
from services.controller.failover import Failover
from services.controller.fit import why_unfit
from services.controller.intake import Intake
from services.controller.invariants import problems
from services.controller.journal import JournalWriter
from services.controller.learned_margin import LearnedMargin
from services.controller.ledger import outcome_of
from services.controller.metrics import Metrics
from services.controller.relay import Relay
from services.controller.replicas import ReplicaManager, ReplicaSettings
from services.controller.request import LiveRequest
from services.controller.tokenizer import ModelTokenizer
from services.controller.worker_events import WorkerEvents

log = logging.getLogger(__name__)

HOUSEKEEPING_S = 1.0
PRECISION_TARGET = 0.99
"""Where no class says otherwise."""


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """best_effort_queue: requests that may wait without a promise. attempts: workers a request may lose, at most."""

    best_effort_queue: int = 1024
    attempts: int = 3
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    replicas: ReplicaSettings = field(default_factory=ReplicaSettings)


class Core:
    """Implements Gateway; composed of managers that tell it what happens."""

    def __init__(
        self,
        controller_id: str,
        fencing_token: int,
        store: Store,
        models: Mapping[str, ModelTokenizer],
        policy: Policy,
        metrics: Metrics,
        make_channel: Callable[[str], grpc.aio.Channel],
        settings: CoreSettings,
        fenced: Callable[[], None],
    ) -> None:
        """fenced: called when the store says that a newer controller leads."""
        self.policy = policy
        self.store = store
        self.metrics = metrics
        self.live: dict[str, LiveRequest] = {}
        self.queue = BestEffortQueue(settings.best_effort_queue)
        self.directory = Directory(store)
        self.started_s = time.monotonic()
        self.closing = ""
        self.failed = asyncio.Event()
        self._models = models
        self._hello = worker_pb2.Hello(
            proto_version=PROTO_VERSION, fencing_token=fencing_token, controller_id=controller_id
        )
        self.replicas = ReplicaManager(
            store, self._make_hello, partial(why_unfit, models), make_channel, self._make_margin, settings.replicas
        )
        self.journal = JournalWriter(store, lambda: fencing_token, lambda: self.replicas, fenced)
        self.accounts = Accounts(self.journal, metrics)
        self._intake = Intake(models, self.directory, self.replicas, self.accounts.lengths)
        self.admission = AdmissionLoop(
            policy,
            self.replicas,
            self.queue,
            self.accounts,
            lambda: self.accounts.relay_times.p99_s,
            lambda: {name: tenant.weight for name, tenant in self.directory.tenants.items()},
            settings.admission,
        )
        self._worker_events = WorkerEvents(
            Relay(self._remaining, self.journal.touched, self._transferred, self._given_back, metrics),
            Failover(settings.attempts, self.admission.offer, self._fail, metrics),
            metrics,
            self.replicas.get,
            self.admission.capacity_changed,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._idle: asyncio.Event | None = None

    # ---- life

    async def start(self) -> None:
        """Read what operators have set and begin to serve; StoreUnavailable when Redis does not answer."""
        await self.store.seed_defaults()
        await self.directory.refresh()
        loops = (
            self.replicas.run(self._worker_events),
            self.directory.run(),
            self.admission.run(),
            self.journal.run(),
            self._housekeep(),
        )
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.critical("a task of the controller failed", exc_info=task.exception())
            self.failed.set()

    async def drain(self, timeout_s: float) -> int:
        """Take nothing new and wait for what runs; return how many requests had to be cut off."""
        self.closing = "the controller is shutting down"
        self._idle = asyncio.Event()
        if self.live:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
        return await self.cut_off("the controller shut down before the request was finished; send it again")

    async def cut_off(self, why: str) -> int:
        """End every request with an error; return how many there were."""
        self.closing = self.closing or why
        requests = [request for request in self.live.values() if not request.finished]
        for request in requests:
            self._fail(request, ApiError("UNAVAILABLE", why, retry_after_s=2.0))
        await asyncio.sleep(0)
        return len(requests)

    async def close(self) -> None:
        """Stop every task; workers keep what they have, which a new leader will cancel."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.replicas.close()

    # ---- Gateway

    async def generate(self, call: GenerationCall) -> AsyncIterator[client_pb2.GenerateResponse]:
        """Validate, admit, serve; see Gateway."""
        request = self._take(call)
        try:
            while True:
                message = await request.outbox.read()
                request.told = True
                self.accounts.handed_over(request, len(message.token_ids))
                if message.finish_reason:
                    request.outcome = outcome_of(request)
                    message.outcome.CopyFrom(request.outcome)
                    # Scored and closed before the last message: whoever has read it finds it in the statistics.
                    self._release(request)
                    yield message
                    return
                yield message
        finally:
            self._release(request)

    async def cancel(self, request_id: str) -> bool:
        """Cancel a running request; False when there is none."""
        request = self.live.get(request_id)
        if request is None or request.finished:
            return False
        request.note("cancelled by its client")
        self._stop(request)
        request.finish(common_pb2.FINISH_REASON_CANCELLED)
        return True

    def models(self) -> list[client_pb2.Model]:
        """Models known to the cluster, ready or not."""
        served = {model.name: model for model in self.replicas.models()}
        for name in self._models:
            served.setdefault(name, client_pb2.Model(name=name))
        return [served[name] for name in sorted(served)]

    def ready(self) -> str:
        """Empty when requests can be served, else what is missing."""
        if self.closing:
            return self.closing
        if not self.store.available:
            return "Redis does not answer; running requests go on, new ones are taken when it is back"
        missing = [self.replicas.why_none(name) for name in sorted(self._models) if not self.replicas.usable(name)]
        return "; ".join(missing) if len(missing) == len(self._models) else ""

    # ---- what happens to a request

    def _take(self, call: GenerationCall) -> LiveRequest:
        if self.closing:
            raise ApiError("UNAVAILABLE", self.closing, retry_after_s=2.0)
        if not self.store.available:
            raise ApiError("UNAVAILABLE", "Redis does not answer, so no new request is taken; try again", None, 2.0)
        try:
            request = self._intake.accept(call)
        except ApiError as error:
            self.metrics.refused.labels(error.code).inc()
            raise
        if request.request_id in self.live:
            self.metrics.refused.labels("ALREADY_EXISTS").inc()
            raise ApiError(
                "ALREADY_EXISTS", f"request id {request.request_id!r} is in use; take another", param="request_id"
            )
        self.live[request.request_id] = request
        request.note(f"arrived: {request.prompt_tokens} prompt tokens, class {request.slo_class}")
        self.admission.offer(request)
        return request

    def running(self) -> Counter[tuple[str, str]]:
        """Requests on replicas by (class, admission)."""
        return Counter((request.slo_class, str(request.admission)) for request in self.live.values() if request.replica)

    def problems(self) -> list[str]:
        """Broken invariants, as sentences; empty when all is well."""
        return problems(self.live, self.admission, self.queue, self.replicas)

    def _stop(self, request: LiveRequest) -> None:
        """Take a request off wherever it is."""
        self.admission.withdraw(request)
        decode, prefill = self.replicas.get(request.replica), self.replicas.get(request.prefill_replica)
        if decode is not None:
            decode.placed.cancel(request)
        if prefill is not None:
            prefill.placed.cancel_prefill(request)

    def _given_back(self, request: LiveRequest) -> None:
        """Take a request off its replicas and let it wait for its turn."""
        self._stop(request)
        request.replica = request.prefill_replica = ""
        self.admission.queue(request)

    def _fail(self, request: LiveRequest, error: ApiError) -> None:
        """End a request with an error: in its last message when it has had one before, else as a refusal."""
        self._stop(request)
        if request.told:
            request.finish(common_pb2.FINISH_REASON_ERROR, error.message, error.code)
        else:
            self.accounts.refused(request, error)

    def _release(self, request: LiveRequest) -> None:
        """Account for a request that nobody reads any more, once."""
        if self.live.pop(request.request_id, None) is None:
            return
        self._stop(request)
        if not request.finished:
            request.note("its client has gone")
            request.finish(common_pb2.FINISH_REASON_CANCELLED)
        self.accounts.ended(request)
        self.replicas.ended(request)
        self.admission.capacity_changed()
        if self._idle is not None and not self.live:
            self._idle.set()

    def _transferred(self, request: LiveRequest, seconds: float) -> None:
        tokens = request.prompt_tokens + len(request.output)
        self.admission.transfers.observe(request.prefill_replica, request.replica, tokens, seconds)
        self.metrics.kv_transfer.observe(max(0.0, seconds))

    def _remaining(self, request: LiveRequest) -> int:
        tenant = self.directory.tenants.get(request.tenant)
        slo_class = self.directory.classes.get(request.slo_class)
        if slo_class is None or tenant is None:  # removed meanwhile
            return max(1, request.max_output_tokens - len(request.output))
        return self._intake.remaining(slo_class, request.call, request.max_output_tokens, len(request.output))

    # ---- inside

    def _make_margin(self) -> LearnedMargin | None:
        if self.policy.admits_all:
            return None  # no promise is computed that a margin could keep
        targets = [slo_class.precision_target for slo_class in self.directory.classes.values()]
        return LearnedMargin(max(targets, default=PRECISION_TARGET))

    def _make_hello(self) -> worker_pb2.Hello:
        hello = worker_pb2.Hello()
        hello.CopyFrom(self._hello)
        return hello

    async def _housekeep(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            now_s = time.monotonic()
            for request in self.admission.expire(now_s):
                why = f"no replica came back: {self.replicas.why_none(request.call.model)}"
                self._fail(request, ApiError("UNAVAILABLE", why, retry_after_s=2.0))
