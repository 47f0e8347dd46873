"""The gRPC front door of operators (slosctl)."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import grpc

from protos.slos.v1 import admin_pb2, admin_pb2_grpc, common_pb2
from scheduling.deadlines import SloError, check_class
from scheduling.types import SloClass
from services.common.store import JournalRecord, StoreUnavailable, Tenant
from services.controller.client_api import abort
from services.controller.contract import ApiError
from services.controller.core import Core
from services.controller.gate import Gate
from services.controller.ledger import request_info
from services.controller.replica import Replica, ReplicaState

ROLES = ("prefill", "decode", "both")
LIST_LIMIT = 100

Method = Callable[[Any, Any, grpc.aio.ServicerContext], Awaitable[Any]]


def answering(method: Method) -> Method:
    """Turn errors into gRPC statuses."""

    @wraps(method)
    async def call(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await method(self, request, context)
        except ApiError as error:
            await abort(context, error)
        except StoreUnavailable as error:
            await abort(context, ApiError("UNAVAILABLE", str(error), retry_after_s=2.0))

    return call


class AdminApi(admin_pb2_grpc.AdminServicer):
    """Status, replicas, classes, tenants, requests."""

    def __init__(self, gate: Gate) -> None:
        """Serve the core behind the gate."""
        self._gate = gate

    @property
    def _core(self) -> Core:
        return self._gate.core

    @answering
    async def GetStatus(self, request: Any, context: Any) -> admin_pb2.GetStatusResponse:  # noqa: N802
        """One picture of the cluster."""
        core = self._core
        running = core.running()
        return admin_pb2.GetStatusResponse(
            replicas=_replicas(core),
            redis_ok=core.store.available,
            running_standard=sum(count for (_, admission), count in running.items() if admission == "standard"),
            running_best_effort=sum(count for (_, admission), count in running.items() if admission != "standard"),
            queued_best_effort=len(core.queue),
            classes=core.ledger.stats(),
            uptime_s=time.monotonic() - core.started_s,
            policy=core.policy.name,
            models=[model.name for model in core.models()],
            problems=core.problems(),
        )

    @answering
    async def ListReplicas(self, request: Any, context: Any) -> admin_pb2.ListReplicasResponse:  # noqa: N802
        """All known replicas."""
        return admin_pb2.ListReplicasResponse(replicas=_replicas(self._core))

    @answering
    async def DrainReplica(self, request: admin_pb2.ReplicaRequest, context: Any) -> admin_pb2.Replica:  # noqa: N802
        """Stop new work on a replica."""
        return self._drain(request.replica, True)

    @answering
    async def UndrainReplica(self, request: admin_pb2.ReplicaRequest, context: Any) -> admin_pb2.Replica:  # noqa: N802
        """Take a drained replica back into service."""
        return self._drain(request.replica, False)

    @answering
    async def RemoveReplica(  # noqa: N802
        self, request: admin_pb2.ReplicaRequest, context: Any
    ) -> admin_pb2.RemoveReplicaResponse:
        """Strike a drained or lost replica off."""
        await self._core.replicas.remove(request.replica)
        return admin_pb2.RemoveReplicaResponse()

    @answering
    async def SetReplicaRole(  # noqa: N802
        self, request: admin_pb2.SetReplicaRoleRequest, context: Any
    ) -> admin_pb2.Replica:
        """Change a replica's role."""
        if request.role not in ROLES:
            raise ApiError("INVALID_ARGUMENT", f"role must be one of {', '.join(ROLES)}, not {request.role!r}", "role")
        replica = _connected(self._core, request.replica)
        replica.set_role(request.role)
        return _replica(replica)

    @answering
    async def ListSloClasses(self, request: Any, context: Any) -> admin_pb2.ListSloClassesResponse:  # noqa: N802
        """All SLO classes."""
        classes = self._core.directory.classes
        return admin_pb2.ListSloClassesResponse(classes=[class_to_wire(classes[name]) for name in sorted(classes)])

    @answering
    async def SetSloClass(self, request: admin_pb2.SetSloClassRequest, context: Any) -> common_pb2.SloClass:  # noqa: N802
        """Create or change a class."""
        slo_class = class_from_wire(request.slo_class)
        await self._core.directory.set_class(slo_class)
        return class_to_wire(slo_class)

    @answering
    async def RemoveSloClass(  # noqa: N802
        self, request: admin_pb2.RemoveSloClassRequest, context: Any
    ) -> admin_pb2.RemoveSloClassResponse:
        """Remove a class."""
        await self._core.directory.remove_class(request.name)
        return admin_pb2.RemoveSloClassResponse()

    @answering
    async def ListTenants(self, request: Any, context: Any) -> admin_pb2.ListTenantsResponse:  # noqa: N802
        """All tenants."""
        tenants = self._core.directory.tenants
        return admin_pb2.ListTenantsResponse(tenants=[_tenant(tenants[name]) for name in sorted(tenants)])

    @answering
    async def SetTenant(self, request: admin_pb2.SetTenantRequest, context: Any) -> common_pb2.Tenant:  # noqa: N802
        """Create or change a tenant."""
        given = request.tenant
        if not given.name:
            raise ApiError("INVALID_ARGUMENT", "a tenant needs a name", param="name")
        if not 0 < given.weight < float("inf"):
            raise ApiError("INVALID_ARGUMENT", f"weight must be positive, not {given.weight:g}", param="weight")
        tenant = Tenant(given.name, given.weight, given.default_class or Tenant(given.name).default_class)
        await self._core.directory.set_tenant(tenant)
        return _tenant(tenant)

    @answering
    async def RemoveTenant(  # noqa: N802
        self, request: admin_pb2.RemoveTenantRequest, context: Any
    ) -> admin_pb2.RemoveTenantResponse:
        """Remove a tenant."""
        await self._core.directory.remove_tenant(request.name)
        return admin_pb2.RemoveTenantResponse()

    @answering
    async def ListRequests(  # noqa: N802
        self, request: admin_pb2.ListRequestsRequest, context: Any
    ) -> admin_pb2.ListRequestsResponse:
        """Running and recent requests, newest first."""
        core, now_s = self._core, time.monotonic()
        limit = request.limit or LIST_LIMIT
        running = sorted(core.live.values(), key=lambda live: live.arrival_s, reverse=True)
        found = [request_info(live, now_s) for live in running[:limit]]
        if not request.running_only:
            for ended in core.ledger.recent():
                if len(found) >= limit:
                    break
                found.append(ended.info)
        return admin_pb2.ListRequestsResponse(requests=found)

    @answering
    async def GetRequest(self, request: admin_pb2.GetRequestRequest, context: Any) -> admin_pb2.RequestInfo:  # noqa: N802
        """One request: running, recent, or from the journal."""
        core = self._core
        live = core.live.get(request.request_id)
        if live is not None:
            return request_info(live, time.monotonic())
        ended = core.ledger.find(request.request_id)
        if ended is not None:
            return ended.info
        record = await core.store.journal.get(request.request_id)
        if record is None:
            raise _unknown(request.request_id)
        return _from_journal(record)

    @answering
    async def Explain(self, request: admin_pb2.ExplainRequest, context: Any) -> admin_pb2.ExplainResponse:  # noqa: N802
        """The numbers of the plan that admitted or declined a request."""
        core = self._core
        live, ended = core.live.get(request.request_id), core.ledger.find(request.request_id)
        if live is not None:
            info, explain = request_info(live, time.monotonic()), live.explain
        elif ended is not None:
            info, explain = ended.info, ended.explain
        else:
            raise _unknown(request.request_id)
        return admin_pb2.ExplainResponse(
            request_id=request.request_id,
            summary=_summary(info, explain, core.policy.name),
            plan_json=json.dumps(explain, default=_plain),
        )

    def _drain(self, worker_id: str, draining: bool) -> admin_pb2.Replica:
        replica = _connected(self._core, worker_id)
        replica.drain(draining)
        return _replica(replica)


def _connected(core: Core, worker_id: str) -> Replica:
    replica = core.replicas.require(worker_id)
    if not replica.link.connected:
        raise ApiError(
            "UNAVAILABLE", f"replica {worker_id} is {replica.state} ({replica.problem}); nothing was changed"
        )
    return replica


def _replicas(core: Core) -> list[admin_pb2.Replica]:
    return [_replica(replica) for replica in sorted(core.replicas, key=lambda replica: replica.worker_id)]


def _replica(replica: Replica) -> admin_pb2.Replica:
    info, mirror = replica.info, replica.mirror
    standard, best_effort = mirror.counts() if mirror is not None else (0, 0)
    times = replica.step_times_s
    return admin_pb2.Replica(
        replica=replica.worker_id,
        role=info.role,
        state=replica.state,
        address=replica.link.address,
        model=info.model,
        emulated=info.emulated,
        kv_capacity_tokens=info.kv_blocks * info.block_size,
        kv_used_tokens=mirror.used_tokens() if mirror is not None and replica.state is not ReplicaState.LOST else 0,
        standard=standard,
        best_effort=best_effort,
        steps=replica.steps,
        step_ms=1e3 * sum(times) / len(times) if times else 0.0,
        rtt_ms=1e3 * replica.link.rtt_s,
        hardware=info.hardware,
        time_model_json=mirror.model.to_json() if mirror is not None else info.time_model_json,
        problem="" if replica.usable else replica.problem,
        block_size=info.block_size,
        max_batch_tokens=info.max_batch_tokens,
        max_batch_requests=info.max_batch_requests,
        max_model_len=info.max_model_len,
        max_spec_tokens=info.max_spec_tokens,
    )


def class_to_wire(slo_class: SloClass) -> common_pb2.SloClass:
    """Return the class in the API's units."""
    return common_pb2.SloClass(
        name=slo_class.name,
        ttft_slowdown=slo_class.ttft_slowdown or 0.0,
        ttft_ms=1e3 * (slo_class.ttft_s or 0.0),
        tpot_ms=1e3 * slo_class.tpot_s,
        thinking_tpot_ms=1e3 * (slo_class.thinking_tpot_s or 0.0),
        inner_tpot_ms=1e3 * (slo_class.inner_tpot_s or 0.0),
        value=slo_class.value,
        length_quantile=slo_class.length_quantile,
        precision_target=slo_class.precision_target,
        description=slo_class.description,
    )


def class_from_wire(wire: common_pb2.SloClass) -> SloClass:
    """Return the class in the planner's units; ApiError names the field that is wrong. 0 means not given."""
    defaults = SloClass("", 1.0)
    slo_class = SloClass(
        name=wire.name.strip(),
        tpot_s=wire.tpot_ms / 1e3,
        ttft_s=wire.ttft_ms / 1e3 if wire.ttft_ms else None,
        ttft_slowdown=wire.ttft_slowdown or None,
        thinking_tpot_s=wire.thinking_tpot_ms / 1e3 if wire.thinking_tpot_ms else None,
        inner_tpot_s=wire.inner_tpot_ms / 1e3 if wire.inner_tpot_ms else None,
        value=wire.value or defaults.value,
        length_quantile=wire.length_quantile or defaults.length_quantile,
        precision_target=wire.precision_target or defaults.precision_target,
        description=wire.description,
    )
    try:
        check_class(slo_class)
    except SloError as error:
        raise ApiError("INVALID_ARGUMENT", str(error), param=error.field) from error
    return slo_class


def _tenant(tenant: Tenant) -> common_pb2.Tenant:
    return common_pb2.Tenant(name=tenant.name, weight=tenant.weight, default_class=tenant.default_class)


def _unknown(request_id: str) -> ApiError:
    return ApiError("NOT_FOUND", f"no running or recent request {request_id!r}", param="request_id")


def _from_journal(record: JournalRecord) -> admin_pb2.RequestInfo:
    closing: dict[str, Any] = dict(record.closing or {})
    header: dict[str, Any] = dict(record.header)
    reason = str(closing.get("finish_reason", "unspecified")).upper()
    return admin_pb2.RequestInfo(
        request_id=record.request_id,
        tenant=header.get("tenant", ""),
        phase="finished" if record.closing is not None else "queued",
        prompt_tokens=len(header.get("token_ids", ())),
        output_tokens=closing.get("output_tokens", 0),
        age_s=max(0.0, time.time() - header.get("arrived_unix_s", time.time())),
        finish_reason=f"FINISH_REASON_{reason}",
        session_id=header.get("session_id", ""),
        history=closing.get("history", ()),
        error=closing.get("error", ""),
    )


def _summary(info: admin_pb2.RequestInfo, explain: dict[str, object], policy: str) -> str:
    promise = info.promise
    slo = f"first token within {promise.ttft_ms:.0f} ms, then one every {promise.tpot_ms:.0f} ms"
    if not explain:
        return f"Policy {policy} makes no plan for it: {promise.reason or 'every request is admitted'} ({slo})."
    if promise.admission == common_pb2.ADMISSION_STANDARD:
        return f"Promised on {promise.replica}: {slo}."
    return f"Best effort, because {promise.reason or explain.get('reason') or 'no plan had room'} (wanted: {slo})."


def _plain(value: Any) -> Any:
    """Turn numpy scalars and arrays, and whatever else a plan holds, into JSON."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
