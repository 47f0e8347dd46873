"""How replicas, classes and requests look in tables; shared by the commands that show them."""

from __future__ import annotations

from collections.abc import Iterable

from cli.output import enum_word
from protos.slos.v1 import admin_pb2, common_pb2

Rows = tuple[list[str], list[list[object]]]


def replica_rows(replicas: Iterable[admin_pb2.Replica]) -> Rows:
    """One line per replica."""
    columns = ["REPLICA", "ROLE", "STATE", "ENGINE", "MODEL", "KV USED", "PROMISED", "BEST EFFORT", "STEPS", "STEP MS"]
    rows: list[list[object]] = []
    for replica in replicas:
        used = 100 * replica.kv_used_tokens / replica.kv_capacity_tokens if replica.kv_capacity_tokens else 0
        rows.append(
            [
                replica.replica,
                replica.role,
                f"{replica.state}: {replica.problem}" if replica.problem else replica.state,
                "emulated" if replica.emulated else "vllm",
                replica.model,
                f"{used:.0f} % of {replica.kv_capacity_tokens}",
                replica.standard,
                replica.best_effort,
                replica.steps,
                replica.step_ms,
            ]
        )
    return columns, rows


def class_rows(classes: Iterable[admin_pb2.ClassStats]) -> Rows:
    """One line per class: how much was promised, how much of that was kept, and latencies."""
    columns = ["CLASS", "FINISHED", "PROMISED", "KEPT", "ATTAINED", "TTFT P50/P99 MS", "TPOT P50/P99 MS"]
    rows: list[list[object]] = [
        [
            stats.slo_class,
            stats.finished,
            stats.promised,
            share(stats.kept, stats.promised),
            share(stats.attained, stats.finished),
            f"{stats.ttft_p50_ms:.0f} / {stats.ttft_p99_ms:.0f}",
            f"{stats.tpot_p50_ms:.1f} / {stats.tpot_p99_ms:.1f}",
        ]
        for stats in classes
    ]
    return columns, rows


def share(part: int, whole: int) -> str:
    """Count with its share of the whole."""
    return f"{part} ({100 * part / whole:.0f} %)" if whole else "-"


def promise_text(promise: common_pb2.Promise) -> str:
    """Promise of a request in one line."""
    slo = f"first token within {promise.ttft_ms:.0f} ms, then {promise.tpot_ms:.0f} ms per token"
    if promise.thinking_tpot_ms:
        slo += f" ({promise.thinking_tpot_ms:.0f} ms while thinking)"
    if promise.admission == common_pb2.ADMISSION_STANDARD:
        where = f" on {promise.replica}" if promise.replica else ""
        return f"promised ({promise.slo_class}): {slo}{where}"
    return f"best effort ({promise.slo_class}; asked: {slo}): {promise.reason or 'no reason given'}"


def outcome_text(outcome: common_pb2.Outcome) -> str:
    """Outcome of a request in one line."""
    if outcome.promised:
        verdict = "promise kept" if outcome.promise_kept else "promise broken"
    else:
        verdict = "no promise; SLO attained" if outcome.attained else "no promise; SLO missed"
    return f"{verdict}: first token after {outcome.ttft_ms:.0f} ms, then {outcome.mean_tpot_ms:.1f} ms per token"


def request_rows(requests: Iterable[admin_pb2.RequestInfo]) -> Rows:
    """One line per request."""
    columns = ["REQUEST", "CLASS", "TENANT", "PHASE", "ADMISSION", "REPLICA", "PROMPT", "OUTPUT", "AGE S", "RESULT"]
    rows: list[list[object]] = []
    for request in requests:
        promise = request.promise
        rows.append(
            [
                request.request_id,
                promise.slo_class,
                request.tenant,
                request.phase,
                enum_word(common_pb2.Admission.DESCRIPTOR, promise.admission).replace("_", " "),
                promise.replica,
                request.prompt_tokens,
                request.output_tokens,
                request.age_s,
                result_word(request),
            ]
        )
    return columns, rows


def result_word(request: admin_pb2.RequestInfo) -> str:
    """How a finished request ended; empty while it runs."""
    reason = enum_word(common_pb2.FinishReason.DESCRIPTOR, request.finish_reason)
    if not reason:
        return ""
    if request.error:
        return f"{reason}: {request.error}"
    outcome = request.outcome
    if outcome.promised:
        return f"{reason}, {'kept' if outcome.promise_kept else 'broken'}"
    return f"{reason}, {'attained' if outcome.attained else 'missed'}"
