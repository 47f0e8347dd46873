"""SLO fields on their way to the core, and the promise on its way back."""

from __future__ import annotations

from typing import Any

import pytest

from protos.slos.v1 import common_pb2
from services.controller.http.schema import SloFields
from services.controller.http.slo import Headers, promise_object, slo_spec


def spec(body: dict[str, Any] | None, **headers: str) -> common_pb2.SloSpec:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return slo_spec(None if body is None else SloFields.model_validate(body), Headers(raw))


def test_nothing_said_leaves_everything_to_the_class() -> None:
    assert spec(None).ListFields() == []
    assert spec({}).ListFields() == []


def test_headers_alone() -> None:
    found = spec(None, x_slo_class="coding", x_slo_ttft_ms="250", x_slo_tpot_ms="12.5")
    assert (found.slo_class, found.ttft_ms, found.tpot_ms) == ("coding", 250, 12.5)


def test_every_field_of_the_body() -> None:
    found = spec(
        {
            "class": "reasoning",
            "ttft_slowdown": 3,
            "tpot_ms": 100,
            "thinking_tpot_ms": 50,
            "round": "last",
            "on_miss": "reject",
            "output_tokens_hint": 300,
        }
    )
    assert found == common_pb2.SloSpec(
        slo_class="reasoning",
        ttft_slowdown=3,
        tpot_ms=100,
        thinking_tpot_ms=50,
        round=common_pb2.ROUND_LAST,
        on_miss=common_pb2.ON_MISS_REJECT,
        output_tokens_hint=300,
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"class": "chatbot"}, common_pb2.SloSpec(slo_class="chatbot", ttft_ms=100, tpot_ms=10)),
        ({"ttft_ms": 900}, common_pb2.SloSpec(slo_class="coding", ttft_ms=900, tpot_ms=10)),
        ({"ttft_slowdown": 4}, common_pb2.SloSpec(slo_class="coding", ttft_slowdown=4, tpot_ms=10)),
        ({"tpot_ms": 70}, common_pb2.SloSpec(slo_class="coding", ttft_ms=100, tpot_ms=70)),
    ],
)
def test_body_wins_over_headers(body: dict[str, Any], expected: common_pb2.SloSpec) -> None:
    assert spec(body, x_slo_class="coding", x_slo_ttft_ms="100", x_slo_tpot_ms="10") == expected


def test_promise_of_a_best_effort_request_says_why() -> None:
    promise = common_pb2.Promise(
        admission=common_pb2.ADMISSION_BEST_EFFORT, slo_class="coding", ttft_ms=100, tpot_ms=50, reason="no room"
    )
    assert promise_object(promise) == {
        "admission": "best_effort",
        "class": "coding",
        "ttft_ms": 100,
        "tpot_ms": 50,
        "thinking_tpot_ms": None,
        "replica": None,
        "reason": "no room",
    }


def test_outcome_without_a_promise_is_neither_kept_nor_broken() -> None:
    outcome = common_pb2.Outcome(attained=True, ttft_ms=80.1234567, mean_tpot_ms=40, worst_lateness_ms=-3)
    found = promise_object(common_pb2.Promise(admission=common_pb2.ADMISSION_BEST_EFFORT), outcome)["outcome"]
    assert found == {
        "promised": False,
        "kept": None,
        "attained": True,
        "attained_paper": False,
        "ttft_ms": 80.123,
        "tpot_ms": 40,
        "worst_lateness_ms": -3,
    }
