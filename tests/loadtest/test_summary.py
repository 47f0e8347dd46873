from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from loadtest import report, summary
from loadtest.plan import Plan, PlannedRound, PlannedSession
from loadtest.records import OutcomeInfo, PromiseInfo, Record

PROMISE = PromiseInfo("standard", "coding", 400.0, 100.0, 0.0, "worker-0", "")
KEPT = OutcomeInfo(True, True, True, True, 120.0, 40.0, -50.0)
BROKEN = OutcomeInfo(False, True, False, True, 450.0, 60.0, 80.0)


def record(session: int, application: str = "coding", **changes: object) -> Record:
    made = Record(
        application=application,
        transport="grpc",
        request_id=f"r{session}",
        session=session,
        round="",
        due_s=1.0,
        sent_s=1.0,
        planned_prompt_tokens=10,
        planned_output_tokens=3,
        prompt_tokens=11,
        output_tokens=3,
        cached_tokens=0,
        thinking_tokens=0,
        token_times_s=(0.12, 0.16, 0.2),
        exact_tokens=True,
        finish_reason="length",
        error="",
        refused=False,
        promise=PROMISE,
        outcome=KEPT,
        client_attained=True,
        client_attained_paper=True,
        client_ttft_ms=121.0,
        client_tpot_ms=40.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def planned(*sessions: tuple[str, int]) -> Plan:
    one = PlannedRound(10, 10, 3, 0, "", 0.0)
    rows = tuple(PlannedSession(i, name, 1.0, (one,) * rounds) for i, (name, rounds) in enumerate(sessions))
    return Plan("mixed", rows, 10.0, 1.0, 0)


def total(rows: list[summary.ClassSummary]) -> summary.ClassSummary:
    return next(row for row in rows if row.application == summary.TOTAL)


def test_what_was_refused_or_broken_counts_against_attainment_but_only_the_broken_is_lost() -> None:
    records = [
        record(0),
        record(1, outcome=BROKEN, client_attained=False),
        record(2, finish_reason="", error="429: full", refused=True, outcome=None, promise=None, token_times_s=()),
        record(3, finish_reason="", error="UNAVAILABLE: gone", outcome=None),
    ]
    plan = planned(*[("coding", 1)] * 5)
    row = total(summary.of_plan(records, plan))
    assert (row.sessions, row.requests, row.refused, row.errors) == (5, 4, 1, 1)
    assert (row.promised, row.kept, row.attained, row.attained_paper) == (3, 1, 1, 2)
    assert row.guarantee_precision == pytest.approx(1 / 3)
    assert row.attainment == pytest.approx(0.2)
    # Session 3 broke, session 4 left no trace.
    assert summary.lost([row]) == 2


def test_a_tool_session_attains_only_when_every_round_does() -> None:
    plan = planned(("tool", 2), ("tool", 2), ("tool", 2))
    records = [record(s, "tool") for s in (0, 0, 1, 2)] + [record(2, "tool", outcome=BROKEN)]
    row = total(summary.of_plan(records, plan))
    assert (row.sessions, row.requests, row.attained) == (3, 5, 1)
    assert row.client_attained == 2


def test_best_effort_counts_as_attained_when_in_time_but_not_as_promised() -> None:
    lucky = replace(KEPT, promised=False, promise_kept=False)
    row = total(summary.of_records([record(0, outcome=lucky), record(1)]))
    assert (row.attained, row.promised, row.kept) == (2, 1, 1)


def test_rows_of_classes_add_up_to_the_total() -> None:
    plan = planned(("coding", 1), ("chatbot", 1), ("chatbot", 1))
    rows = summary.of_plan([record(0), record(1, "chatbot"), record(2, "chatbot", outcome=BROKEN)], plan)
    parts = [row for row in rows if row.application != summary.TOTAL]
    assert [row.application for row in parts] == ["chatbot", "coding"]
    for name in ("sessions", "requests", "promised", "kept", "attained", "prompt_tokens", "output_tokens"):
        assert sum(getattr(row, name) for row in parts) == getattr(total(rows), name)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_percentile_is_a_value_that_the_share_does_not_exceed(values: list[float], share: float) -> None:
    found = summary.percentile(values, share)
    assert found in values
    assert sum(v <= found for v in values) >= share * len(values)
    assert sum(v < found for v in values) < share * len(values)


def test_no_values_no_percentile() -> None:
    assert summary.percentile([None], 0.5) is None


def test_the_reports_hold_the_same_numbers_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    plan = planned(("coding", 1), ("chatbot", 1), ("tool", 1))
    records = [
        record(0),
        record(1, "chatbot", outcome=BROKEN),
        record(2, "tool", finish_reason="", error="INTERNAL: <b>gone</b>", outcome=None, token_times_s=()),
    ]
    rows = summary.of_plan(records, plan)
    facts = {"scenario": "mixed <&>", "emulated": True}
    report.write_html(tmp_path / "a" / "r.html", facts, rows, records)
    report.write_json(tmp_path / "b" / "r.json", facts, rows, records)
    page = (tmp_path / "a" / "r.html").read_text()
    assert page.count("<svg") == 4
    assert "not measurements" in page
    assert "mixed &lt;&amp;&gt;" in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    data = json.loads((tmp_path / "b" / "r.json").read_text())
    assert [Record.from_dict(r) for r in data["records"]] == records
    assert data["classes"][-1]["attained"] == 1
    printed = io.StringIO()
    report.print_table(rows, "run", Console(file=printed))
    assert "summarization" not in printed.getvalue()
    for name in ("chatbot", "coding", "tool", "TPOT p99"):
        assert name in printed.getvalue()
    assert "…" not in printed.getvalue()


def test_an_empty_run_can_be_reported(tmp_path: Path) -> None:
    rows = summary.of_plan([], planned(("coding", 1)))
    report.write_html(tmp_path / "r.html", {}, rows, [])
    assert summary.lost(rows) == 1
