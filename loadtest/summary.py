"""What a run comes to, per class and in all.

Attainment is a share of everything that was sent, refused and failed included; a tool session attains when all its
rounds do. The controller's scoring is the headline; `client_` columns are the same scoring over what the client saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from loadtest.plan import Plan
from loadtest.records import Record

TOTAL = "all"


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """One row of the table. Shares are None where there is nothing to divide by; times are milliseconds.

    sessions_lost: planned sessions that have no record at all, or whose last record is an error other than a refusal.
    guarantee_precision: kept / promised.
    """

    application: str
    sessions: int
    requests: int
    refused: int
    errors: int
    sessions_lost: int
    promised: int
    kept: int
    attained: int
    attainment: float | None
    attained_paper: int
    guarantee_precision: float | None
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None
    client_attained: int
    client_ttft_p50_ms: float | None
    client_ttft_p99_ms: float | None
    client_tpot_p50_ms: float | None
    client_tpot_p99_ms: float | None
    prompt_tokens: int
    output_tokens: int


def percentile(values: Iterable[float | None], share: float) -> float | None:
    """Smallest value that `share` of the values do not exceed (nearest rank); None when there are none."""
    ordered = sorted(v for v in values if v is not None)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def of_plan(records: Sequence[Record], plan: Plan) -> list[ClassSummary]:
    """One row per application and the total; every planned session must account for itself."""
    rounds = {s.number: _Session(s.application, len(s.rounds)) for s in plan.sessions}
    for record in records:
        rounds[record.session].records.append(record)
    return _rows(list(rounds.values()))


def of_records(records: Sequence[Record]) -> list[ClassSummary]:
    """Rows for a closed loop, where each request stands for itself and nothing was planned."""
    return _rows([_Session(r.application, 1, [r]) for r in records])


def lost(rows: Sequence[ClassSummary]) -> int:
    """Sessions that got neither an answer nor a clear refusal."""
    return next((row.sessions_lost for row in rows if row.application == TOTAL), 0)


@dataclass(slots=True)
class _Session:
    """What was planned and what came of it."""

    application: str
    rounds: int
    records: list[Record] = field(default_factory=list)

    def all(self, verdict: Callable[[Record], bool]) -> bool:
        """Every planned round has ended by itself and satisfies the verdict."""
        return len(self.records) == self.rounds and all(r.finished and verdict(r) for r in self.records)

    @property
    def lost(self) -> bool:
        """It has no record, or a round broke."""
        return not self.records or any(r.error and not r.refused for r in self.records)


def _rows(sessions: list[_Session]) -> list[ClassSummary]:
    names = sorted({s.application for s in sessions})
    return [_row(name, [s for s in sessions if s.application == name]) for name in names] + [_row(TOTAL, sessions)]


def _row(name: str, sessions: list[_Session]) -> ClassSummary:
    records = [record for session in sessions for record in session.records]
    promised = [r for r in records if _promised(r)]
    kept = sum(1 for r in promised if r.finished and r.outcome is not None and r.outcome.promise_kept)
    attained = sum(s.all(lambda r: r.outcome is not None and r.outcome.attained) for s in sessions)
    answered = [(r, r.outcome) for r in records if r.outcome is not None and r.token_times_s]
    ttft_ms = [outcome.ttft_ms for _, outcome in answered]
    tpot_ms = [outcome.mean_tpot_ms for record, outcome in answered if record.output_tokens > 1]
    return ClassSummary(
        application=name,
        sessions=len(sessions),
        requests=len(records),
        refused=sum(r.refused for r in records),
        errors=sum(1 for r in records if r.error and not r.refused),
        sessions_lost=sum(s.lost for s in sessions),
        promised=len(promised),
        kept=kept,
        attained=attained,
        attainment=attained / len(sessions) if sessions else None,
        attained_paper=sum(s.all(lambda r: r.outcome is not None and r.outcome.attained_paper) for s in sessions),
        guarantee_precision=kept / len(promised) if promised else None,
        ttft_p50_ms=percentile(ttft_ms, 0.5),
        ttft_p99_ms=percentile(ttft_ms, 0.99),
        tpot_p50_ms=percentile(tpot_ms, 0.5),
        tpot_p99_ms=percentile(tpot_ms, 0.99),
        client_attained=sum(s.all(lambda r: bool(r.client_attained)) for s in sessions),
        client_ttft_p50_ms=percentile((r.client_ttft_ms for r in records), 0.5),
        client_ttft_p99_ms=percentile((r.client_ttft_ms for r in records), 0.99),
        client_tpot_p50_ms=percentile((r.client_tpot_ms for r in records), 0.5),
        client_tpot_p99_ms=percentile((r.client_tpot_ms for r in records), 0.99),
        prompt_tokens=sum(r.prompt_tokens for r in records),
        output_tokens=sum(r.output_tokens for r in records),
    )


def _promised(record: Record) -> bool:
    """It was told "standard" at any time; a request that broke off is judged by what it had been told."""
    if record.outcome is not None:
        return record.outcome.promised
    return record.promise is not None and record.promise.standard
