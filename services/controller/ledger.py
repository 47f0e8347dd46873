"""What became of requests: scores them, keeps statistics per class, and remembers the last ones."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from protos.slos.v1 import admin_pb2, common_pb2
from scheduling.scoring import score
from scheduling.types import Admission
from services.controller.request import LiveRequest

RECENT = 1000


def is_complete(request: LiveRequest) -> bool:
    """Whether a request has ended by itself."""
    return request.finish_reason in (
        common_pb2.FINISH_REASON_STOP,
        common_pb2.FINISH_REASON_LENGTH,
        common_pb2.FINISH_REASON_TOOL_CALLS,
    )


def outcome_of(request: LiveRequest) -> common_pb2.Outcome:
    """Score a request that has ended, from the times at which its tokens were handed over."""
    complete = is_complete(request)
    result = score(request.arrival_s, request.token_times_s, request.slo, request.thinking_tokens, complete)
    return common_pb2.Outcome(
        attained=result.attained,
        attained_paper=result.attained_paper,
        promised=request.promised,
        promise_kept=request.promised and result.attained,
        ttft_ms=result.ttft_s * 1e3 if math.isfinite(result.ttft_s) else 0.0,
        mean_tpot_ms=result.mean_tpot_s * 1e3,
        worst_lateness_ms=result.worst_lateness_s * 1e3 if math.isfinite(result.worst_lateness_s) else 0.0,
    )


def request_info(request: LiveRequest, now_s: float) -> admin_pb2.RequestInfo:
    """Describe a request for operators."""
    info = admin_pb2.RequestInfo(
        request_id=request.request_id,
        tenant=request.tenant,
        phase=request.phase,
        promise=request.promise(),
        prompt_tokens=request.prompt_tokens,
        output_tokens=len(request.output),
        age_s=(request.finished_s if request.finished else now_s) - request.arrival_s,
        finish_reason=request.finish_reason,
        session_id=request.call.session_id,
        history=request.history,
        error=request.error,
    )
    if request.outcome is not None:
        info.outcome.CopyFrom(request.outcome)
    return info


@dataclass(slots=True)
class _ClassRecord:
    finished: int = 0
    promised: int = 0
    kept: int = 0
    attained: int = 0
    ttft_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    tpot_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that has ended, as it is remembered."""

    info: admin_pb2.RequestInfo
    explain: dict[str, object]
    ended_s: float


class Ledger:
    """Statistics since the start of this process, and its last RECENT requests."""

    def __init__(self) -> None:
        """Start empty."""
        self._classes: dict[str, _ClassRecord] = {}
        self._recent: OrderedDict[str, Ended] = OrderedDict()

    def ended(self, request: LiveRequest) -> None:
        """Take a request that has ended and been scored; a cancelled one is in no statistics."""
        assert request.outcome is not None
        now_s = time.monotonic()
        self._recent[request.request_id] = Ended(request_info(request, now_s), request.explain, now_s)
        self._recent.move_to_end(request.request_id)
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        if request.finish_reason == common_pb2.FINISH_REASON_CANCELLED:
            return
        outcome = request.outcome
        record = self._classes.setdefault(request.slo_class, _ClassRecord())
        record.finished += 1
        record.promised += outcome.promised
        record.kept += outcome.promise_kept
        record.attained += outcome.attained
        if request.token_times_s:
            record.ttft_ms.append(outcome.ttft_ms)
        if len(request.token_times_s) > 1:
            record.tpot_ms.append(outcome.mean_tpot_ms)

    def recent(self) -> Iterable[Ended]:
        """Requests that have ended, newest first."""
        return reversed(self._recent.values())

    def find(self, request_id: str) -> Ended | None:
        """A request that ended lately."""
        return self._recent.get(request_id)

    def stats(self) -> list[admin_pb2.ClassStats]:
        """Statistics per class, by name."""
        return [
            admin_pb2.ClassStats(
                slo_class=name,
                finished=record.finished,
                promised=record.promised,
                kept=record.kept,
                attained=record.attained,
                ttft_p50_ms=_quantile(record.ttft_ms, 0.5),
                ttft_p99_ms=_quantile(record.ttft_ms, 0.99),
                tpot_p50_ms=_quantile(record.tpot_ms, 0.5),
                tpot_p99_ms=_quantile(record.tpot_ms, 0.99),
            )
            for name, record in sorted(self._classes.items())
        ]


def closing_of(request: LiveRequest) -> dict[str, object]:
    """Return what the journal keeps of a request that has ended."""
    outcome = request.outcome
    return {
        "finish_reason": common_pb2.FinishReason.Name(request.finish_reason).removeprefix("FINISH_REASON_").lower(),
        "error": request.error,
        "output_tokens": len(request.output),
        "admission": str(Admission.STANDARD if request.promised else Admission.BEST_EFFORT),
        "attained": bool(outcome and outcome.attained),
        "attempts": request.attempts + 1,
        "history": list(request.history),
    }


def _quantile(values: Iterable[float], quantile: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(quantile * len(ordered)) - 1)] if ordered else 0.0
