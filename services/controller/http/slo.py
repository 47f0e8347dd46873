"""SLO fields of a request: from headers and body to the wire, and the promise back to the client."""

from __future__ import annotations

import re
from typing import Any

from protos.slos.v1 import common_pb2
from services.controller.contract import ApiError
from services.controller.http.schema import MAX_MILLISECONDS, NAME_PATTERN, SloFields

_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_NAME = re.compile(NAME_PATTERN)
_ROUND = {"inner": common_pb2.ROUND_INNER, "last": common_pb2.ROUND_LAST, None: common_pb2.ROUND_UNSPECIFIED}
_ON_MISS = {
    "best_effort": common_pb2.ON_MISS_BEST_EFFORT,
    "reject": common_pb2.ON_MISS_REJECT,
    None: common_pb2.ON_MISS_UNSPECIFIED,
}
_ADMISSION = {common_pb2.ADMISSION_STANDARD: "standard", common_pb2.ADMISSION_BEST_EFFORT: "best_effort"}


class Headers:
    """Request headers that mean something to us, checked one by one; a header given twice must agree."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        """raw: as ASGI gives them, names in lower case."""
        self._values: dict[str, str] = {}
        for name, value in raw:
            if not name.startswith(b"x-"):
                continue
            key, text = name.decode("latin-1"), value.decode("latin-1").strip()
            if self._values.setdefault(key, text) != text and key in _OURS:
                raise ApiError("INVALID_ARGUMENT", f"{key} is given twice with different values; give it once", key)

    def name(self, key: str, longest: int = 128) -> str:
        """A name or id of at most longest characters; empty when the header is absent."""
        value = self._values.get(key, "")
        if value and (len(value) > longest or not _NAME.fullmatch(value)):
            text = f"{key}: must be 1 to {longest} letters, digits and any of _ . : -"
            raise ApiError("INVALID_ARGUMENT", text, key)
        return value

    def milliseconds(self, key: str) -> float | None:
        """A duration; None when the header is absent."""
        value = self._values.get(key)
        if value is None:
            return None
        if not _NUMBER.fullmatch(value) or not 0 < float(value) <= MAX_MILLISECONDS:
            text = (
                f"{key}: must be a number of milliseconds above 0 and at most {MAX_MILLISECONDS} (got {value[:40]!r})"
            )
            raise ApiError("INVALID_ARGUMENT", text, key)
        return float(value)


_OURS = frozenset({"x-slo-class", "x-slo-ttft-ms", "x-slo-tpot-ms", "x-session-id", "x-tenant", "x-request-id"})


def slo_spec(body: SloFields | None, headers: Headers) -> common_pb2.SloSpec:
    """SLOs as asked for; where body and header say different things the body wins."""
    # Headers are checked even where the body wins: a broken header is a broken client.
    slo_class = headers.name("x-slo-class")
    ttft_ms = headers.milliseconds("x-slo-ttft-ms")
    tpot_ms = headers.milliseconds("x-slo-tpot-ms")
    spec = common_pb2.SloSpec(slo_class=slo_class, ttft_ms=ttft_ms, tpot_ms=tpot_ms)
    if body is None:
        return spec
    if body.slo_class is not None:
        spec.slo_class = body.slo_class
    if body.ttft_ms is not None:
        spec.ttft_ms = body.ttft_ms
    if body.ttft_slowdown is not None:
        spec.ClearField("ttft_ms")
        spec.ttft_slowdown = body.ttft_slowdown
    if body.tpot_ms is not None:
        spec.tpot_ms = body.tpot_ms
    if body.thinking_tpot_ms is not None:
        spec.thinking_tpot_ms = body.thinking_tpot_ms
    if body.output_tokens_hint is not None:
        spec.output_tokens_hint = body.output_tokens_hint
    spec.round = _ROUND[body.round]
    spec.on_miss = _ON_MISS[body.on_miss]
    return spec


def promise_object(promise: common_pb2.Promise, outcome: common_pb2.Outcome | None = None) -> dict[str, Any]:
    """What the client was promised and, once the request has finished, what came of it. Times in milliseconds."""
    value: dict[str, Any] = {
        "admission": _ADMISSION.get(promise.admission),
        "class": promise.slo_class or None,
        "ttft_ms": round(promise.ttft_ms, 3),
        "tpot_ms": round(promise.tpot_ms, 3),
        "thinking_tpot_ms": round(promise.thinking_tpot_ms, 3) or None,
        "replica": promise.replica or None,
        "reason": promise.reason or None,
    }
    if outcome is not None:
        value["outcome"] = {
            "promised": outcome.promised,
            "kept": outcome.promise_kept if outcome.promised else None,
            "attained": outcome.attained,
            "attained_paper": outcome.attained_paper,
            "ttft_ms": round(outcome.ttft_ms, 3),
            "tpot_ms": round(outcome.mean_tpot_ms, 3),
            "worst_lateness_ms": round(outcome.worst_lateness_ms, 3),
        }
    return value
