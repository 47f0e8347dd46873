"""From classes and SLO fields to the SLO in force; residents that could be promised again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling import registry
from scheduling.classes import ALIASES, APPLICATION_CLASSES, find, scaled
from scheduling.deadlines import SloError, SloFields, check_class, resolve
from scheduling.promotion import hopeful, promote
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits, Round, SloClass

CHAT, TOOL, REASONING = (APPLICATION_CLASSES[name] for name in ("chatbot", "tool", "reasoning"))


def test_the_shipped_classes_are_sound_and_found_by_alias() -> None:
    for slo_class in APPLICATION_CLASSES.values():
        check_class(slo_class)
    assert all(find(alias) is APPLICATION_CLASSES[name] for alias, name in ALIASES.items())
    with pytest.raises(KeyError, match="unknown SLO class 'poetry'; known: chatbot"):
        find("poetry")


@given(st.floats(0.01, 100.0), st.floats(0.001, 50.0))
def test_a_slower_engine_scales_times_and_keeps_slowdowns(factor: float, prefill_s: float) -> None:
    for slo_class in APPLICATION_CLASSES.values():
        slo = resolve(scaled(slo_class, factor), SloFields(), prefill_s)
        assert slo.tpot_s == pytest.approx(slo_class.tpot_s * factor)
        assert slo.ttft_s == pytest.approx((slo_class.ttft_slowdown or 0.0) * prefill_s)


def test_the_clients_fields_win() -> None:
    assert resolve(CHAT, SloFields(ttft_ms=700.0, tpot_ms=30.0), 1.0).ttft_s == pytest.approx(0.7)
    assert resolve(CHAT, SloFields(ttft_slowdown=2.0), 0.5).ttft_s == pytest.approx(1.0)
    assert resolve(TOOL, SloFields(), 1.0, has_tools=True).tpot_s == 0.05, "an undeclared tool round is an inner one"
    assert resolve(TOOL, SloFields(round=Round.LAST), 1.0, has_tools=True).tpot_s == 0.1
    assert resolve(REASONING, SloFields(), 1.0).thinking_tpot_s is None
    assert resolve(REASONING, SloFields(), 1.0, thinks=True).thinking_tpot_s == 0.05


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (SloFields(ttft_ms=1.0, ttft_slowdown=2.0), "ttft_ms"),
        (SloFields(ttft_slowdown=0.5), "ttft_slowdown"),
        (SloFields(tpot_ms=-1.0), "tpot_ms"),
        (SloFields(tpot_ms=float("nan")), "tpot_ms"),
        (SloFields(ttft_ms=1e12), "ttft_ms"),
    ],
)
def test_bad_fields_are_named(fields: SloFields, field: str) -> None:
    with pytest.raises(SloError) as error:
        resolve(CHAT, fields, 1.0)
    assert error.value.field == field


@pytest.mark.parametrize(
    "bad",
    [
        SloClass("", 0.1, ttft_s=1.0),
        SloClass("x", 0.1),
        SloClass("x", 0.1, ttft_s=1.0, ttft_slowdown=2.0),
        SloClass("x", 0.0, ttft_s=1.0),
        replace(CHAT, length_quantile=1.0),
        replace(CHAT, ttft_slowdown=0.9),
    ],
)
def test_bad_classes_are_refused(bad: SloClass) -> None:
    with pytest.raises(SloError):
        check_class(bad)


def test_only_those_with_hope_are_asked_for_promotion() -> None:
    table = RequestTable()
    for name, deadline_s, standard in (("late", 0.01, False), ("hope", 1.0, False), ("promised", 1.0, True)):
        table.add(name, prompt_tokens=100, prefill_deadline_s=deadline_s, tpot_s=0.1, standard=standard)
    model, limits = TimeModel(((0.02, 1e-4, 0.0, 0.0, 0.0, 0.0),)), EngineLimits(2048, 64, 16, 1000, 8192)
    names = ["late", "hope", "promised"]
    assert hopeful(0.0, table, model, limits, names) == ["hope"]
    assert promote(0.0, table, 1000, model, limits, registry.get("slos").admission, names).accepted == ("hope",)
    assert hopeful(0.99, table, model, limits, names) == []
