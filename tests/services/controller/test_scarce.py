"""One fast replica with little memory and a short queue: declining, waiting, promotion, thinking."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import httpx
import pytest

from protos.slos.v1 import admin_pb2, client_pb2, common_pb2
from tests.fixtures.controller import ControlledCluster, controlled
from tests.services.controller.load import generate_request, prompt_of, run_all

QUEUE = 5
IMPOSSIBLE = common_pb2.SloSpec(slo_class="chatbot", ttft_ms=1.0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlledCluster]:
    with controlled(
        tmp_path_factory.mktemp("scarce"),
        workers=1,
        worker_arguments=("--kv-blocks", "64", "--max-model-len", "1000", "--time-scale", "0.2"),
        controller_arguments=("--best-effort-queue", str(QUEUE)),
    ) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: ControlledCluster) -> Iterator[ControlledCluster]:
    yield shared
    shared.settled()


def loose(hint: int) -> common_pb2.SloSpec:
    """Never late, and expected to become this long."""
    return common_pb2.SloSpec(slo_class="chatbot", ttft_ms=60_000.0, tpot_ms=5_000.0, output_tokens_hint=hint)


def test_a_full_best_effort_queue_refuses_more(cluster: ControlledCluster) -> None:
    requests = [generate_request(prompt_of(seed), slo=IMPOSSIBLE, max_tokens=60) for seed in range(40)]
    answers = run_all(cluster.grpc_address, requests)
    refused = [answer.error for answer in answers if answer.error is not None]
    assert {answer.finish for answer in answers if answer.error is None} == {"length"}
    assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert f"{QUEUE} best-effort requests wait already" in str(refused[0].details())
    assert int(dict(refused[0].trailing_metadata() or ())["retry-after-ms"]) >= 1000
    assert len(answers) - len(refused) >= QUEUE


async def test_over_http_a_full_queue_is_a_429_with_a_time_to_retry(cluster: ControlledCluster) -> None:
    body = {"model": "tiny", "prompt": "x" * 60, "max_tokens": 60, "ignore_eos": True, "slo": {"ttft_ms": 1}}
    async with httpx.AsyncClient(timeout=60) as client:
        answers = await asyncio.gather(*(client.post(f"{cluster.url}/v1/completions", json=body) for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "resource_exhausted")
    assert f"{QUEUE} best-effort requests wait already" in error["message"]


def test_a_declined_request_is_promised_when_room_is_made(cluster: ControlledCluster) -> None:
    first = generate_request([1] * 100, request_id="first", max_tokens=800, slo=loose(800))
    second = generate_request([2] * 100, request_id="second", max_tokens=700, slo=loose(700))

    def make_room() -> None:
        cluster.client.Cancel(client_pb2.CancelRequest(request_id="first"), timeout=5.0)

    one, two = run_all(cluster.grpc_address, [first, second], gap_s=0.2, after=(100, make_room))
    assert one.finish == "cancelled"
    assert two.finish == "length"
    admissions = [promise.admission for promise in two.promises]
    assert admissions[0] == common_pb2.ADMISSION_BEST_EFFORT
    assert "KV memory" in two.promises[0].reason
    assert admissions[-1] == common_pb2.ADMISSION_STANDARD
    assert two.last is not None
    assert two.last.outcome.promised
    assert two.last.outcome.promise_kept


def test_thinking_is_kept_apart_and_has_its_own_pace(cluster: ControlledCluster) -> None:
    request = client_pb2.GenerateRequest(
        model="tiny",
        prompt="What is 6 times 7?<think>",
        sampling=common_pb2.Sampling(temperature=0.0, max_tokens=700),
        slo=common_pb2.SloSpec(slo_class="reasoning", ttft_ms=30_000.0, tpot_ms=4_000.0, thinking_tpot_ms=2_000.0),
    )
    (answer,) = run_all(cluster.grpc_address, [request])
    assert answer.finish == "stop"
    assert answer.promises[0].thinking_tpot_ms == 2_000.0
    assert answer.reasoning
    assert answer.text
    assert "think>" not in answer.reasoning + answer.text
    # Every emulated token but the marker and the end is one word.
    words = len(answer.reasoning.split()) + len(answer.text.split())
    assert words == len(answer.token_ids) - 2
    assert answer.last is not None
    assert answer.last.outcome.promise_kept


def test_classes_and_tenants_are_edited_while_it_runs(cluster: ControlledCluster) -> None:
    admin = cluster.admin
    slo_class = common_pb2.SloClass(name="batch", ttft_ms=45_000.0, tpot_ms=4_000.0, value=0.5)
    stored = admin.SetSloClass(admin_pb2.SetSloClassRequest(slo_class=slo_class), timeout=5.0)
    assert stored.precision_target == 0.99
    tenant = common_pb2.Tenant(name="night", weight=2.0, default_class="batch")
    admin.SetTenant(admin_pb2.SetTenantRequest(tenant=tenant), timeout=5.0)
    request = generate_request(prompt_of(1), slo=common_pb2.SloSpec(), max_tokens=5)
    request.tenant = "night"
    (answer,) = run_all(cluster.grpc_address, [request])
    assert answer.promises[0].slo_class == "batch"
    assert answer.promises[0].ttft_ms == 45_000.0
    with pytest.raises(grpc.RpcError) as caught:
        admin.RemoveSloClass(admin_pb2.RemoveSloClassRequest(name="batch"), timeout=5.0)
    assert "default of tenant night" in str(caught.value.details())
    admin.RemoveTenant(admin_pb2.RemoveTenantRequest(name="night"), timeout=5.0)
    admin.RemoveSloClass(admin_pb2.RemoveSloClassRequest(name="batch"), timeout=5.0)
    names = [entry.name for entry in admin.ListSloClasses(admin_pb2.ListSloClassesRequest(), timeout=5.0).classes]
    assert names == sorted(names)
    assert "batch" not in names


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"name": ""}, "name"),
        ({"name": "x", "tpot_ms": 50.0}, "exactly one"),
        ({"name": "x", "tpot_ms": 50.0, "ttft_ms": 1.0, "ttft_slowdown": 2.0}, "exactly one"),
        ({"name": "x", "tpot_ms": -50.0, "ttft_ms": 1.0}, "tpot_ms"),
        ({"name": "x", "tpot_ms": 50.0, "ttft_ms": 1.0, "length_quantile": 2.0}, "length_quantile"),
    ],
)
def test_a_class_that_makes_no_sense_is_refused(
    cluster: ControlledCluster, fields: dict[str, object], word: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        cluster.admin.SetSloClass(admin_pb2.SetSloClassRequest(slo_class=common_pb2.SloClass(**fields)), timeout=5.0)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert word in str(caught.value.details())
