"""Between the admin API's messages and what the controller keeps: replicas, classes, tenants, ended requests."""

from __future__ import annotations

import json
import time
from typing import Any

from protos.slos.v1 import admin_pb2, common_pb2
from scheduling.deadlines import SloError, check_class
from scheduling.types import SloClass
from services.common.store import JournalRecord, Tenant
from services.controller.contract import ApiError
from services.controller.replica import Replica
from services.controller.replica_events import ReplicaState


def replica_to_wire(replica: Replica) -> admin_pb2.Replica:
    """Describe a replica."""
    info, mirror = replica.info, replica.mirror
    standard, best_effort = mirror.counts() if mirror is not None else (0, 0)
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
        steps=replica.steps.count,
        step_ms=1e3 * replica.steps.mean_s,
        rtt_ms=1e3 * replica.link.rtt_s,
        hardware=info.hardware,
        time_model_json=mirror.model.to_json() if mirror is not None else info.time_model_json,
        problem=replica.alone if replica.usable else replica.problem,
        block_size=info.block_size,
        max_batch_tokens=info.max_batch_tokens,
        max_batch_requests=info.max_batch_requests,
        max_model_len=info.max_model_len,
        max_spec_tokens=info.max_spec_tokens,
        time_margin=mirror.model.margin if mirror is not None else 0.0,
        margin_json=json.dumps(replica.margin.explain()) if replica.margin is not None else "",
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


def tenant_to_wire(tenant: Tenant) -> common_pb2.Tenant:
    """Describe a tenant."""
    return common_pb2.Tenant(name=tenant.name, weight=tenant.weight, default_class=tenant.default_class)


def journaled_to_wire(record: JournalRecord) -> admin_pb2.RequestInfo:
    """Describe a request that only the journal remembers."""
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


def explanation_to_wire(
    info: admin_pb2.RequestInfo, explain: dict[str, object], policy: str
) -> admin_pb2.ExplainResponse:
    """Say why a request was admitted or not, with the numbers of its plan."""
    return admin_pb2.ExplainResponse(
        request_id=info.request_id,
        summary=_summary(info, explain, policy),
        plan_json=json.dumps(explain, default=_plain),
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
