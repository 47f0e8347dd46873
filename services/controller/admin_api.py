"""The gRPC front door of operators (slosctl)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import grpc

from protos.slos.v1 import admin_pb2, admin_pb2_grpc, common_pb2
from services.common.store import StoreUnavailable, Tenant
from services.controller.admin_views import (
    class_from_wire,
    class_to_wire,
    explanation_to_wire,
    journaled_to_wire,
    replica_to_wire,
    tenant_to_wire,
)
from services.controller.client_api import abort
from services.controller.contract import ApiError
from services.controller.core import Core
from services.controller.gate import Gate
from services.controller.ledger import request_info
from services.controller.replica import Replica

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
            classes=core.accounts.ledger.stats(),
            uptime_s=time.monotonic() - core.started_s,
            policy=core.policy.name,
            models=[model.name for model in core.models()],
            problems=core.problems(),
            kv_handovers=core.metrics.count("slos:kv_handovers_total"),
            kv_recomputed=core.metrics.count("slos:kv_transfers_recomputed_total"),
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
        return replica_to_wire(replica)

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
        return admin_pb2.ListTenantsResponse(tenants=[tenant_to_wire(tenants[name]) for name in sorted(tenants)])

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
        return tenant_to_wire(tenant)

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
            for ended in core.accounts.ledger.recent():
                if len(found) >= limit:
                    break
                found.append(ended.info)
        return admin_pb2.ListRequestsResponse(requests=found)

    @answering
    async def GetRequest(self, request: admin_pb2.GetRequestRequest, context: Any) -> admin_pb2.RequestInfo:  # noqa: N802
        """One request: running, recent, or from the journal."""
        try:
            info, _ = _known(self._core, request.request_id)
        except ApiError:
            record = await self._core.store.journal.get(request.request_id)
            if record is None:
                raise
            info = journaled_to_wire(record)
        return info

    @answering
    async def Explain(self, request: admin_pb2.ExplainRequest, context: Any) -> admin_pb2.ExplainResponse:  # noqa: N802
        """The numbers of the plan that admitted or declined a request."""
        info, explain = _known(self._core, request.request_id)
        return explanation_to_wire(info, explain, self._core.policy.name)

    def _drain(self, worker_id: str, draining: bool) -> admin_pb2.Replica:
        replica = _connected(self._core, worker_id)
        replica.drain(draining)
        return replica_to_wire(replica)


def _connected(core: Core, worker_id: str) -> Replica:
    replica = core.replicas.require(worker_id)
    if not replica.link.connected:
        raise ApiError(
            "UNAVAILABLE", f"replica {worker_id} is {replica.state} ({replica.problem}); nothing was changed"
        )
    return replica


def _replicas(core: Core) -> list[admin_pb2.Replica]:
    return [replica_to_wire(replica) for replica in sorted(core.replicas, key=lambda replica: replica.worker_id)]


def _known(core: Core, request_id: str) -> tuple[admin_pb2.RequestInfo, dict[str, object]]:
    """A running or recent request with its plan; ApiError NOT_FOUND when there is none of this name."""
    live = core.live.get(request_id)
    if live is not None:
        return request_info(live, time.monotonic()), live.explain
    ended = core.accounts.ledger.find(request_id)
    if ended is None:
        raise ApiError("NOT_FOUND", f"no running or recent request {request_id!r}", param="request_id")
    return ended.info, ended.explain
