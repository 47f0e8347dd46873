"""The HTTP API of a whole cluster: controller, workers and Redis as processes, engines emulated."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings

from tests.cluster import Cluster
from tests.services.controller.http.conftest import wait_until
from tests.services.controller.http.test_fuzz import requests

HI = [{"role": "user", "content": "Say something about deadlines."}]


@pytest.fixture
def client(emulated_cluster: Cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{emulated_cluster.url}/v1", api_key="none", max_retries=0, timeout=60)


def post(cluster: Cluster, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(cluster.url + path, json={"model": cluster.model, **body}, headers=names, timeout=60)


def running(cluster: Cluster) -> int:
    status = cluster.slosctl_json("status")
    return sum(int(status.get(name, 0)) for name in ("running_standard", "running_best_effort", "queued_best_effort"))


def test_whole_answer(emulated_cluster: Cluster, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=emulated_cluster.model, messages=HI, max_tokens=12, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    slo = answer.model_extra["slo"]  # type: ignore[index]
    assert slo["class"] == "chatbot"
    assert slo["admission"] in ("standard", "best_effort")
    assert slo["outcome"]["ttft_ms"] > 0


def test_stream_starts_with_the_promise_and_ends_with_the_outcome(
    emulated_cluster: Cluster, client: openai.OpenAI
) -> None:
    chunks = list(
        client.chat.completions.create(
            model=emulated_cluster.model,
            messages=HI,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True, "slo": {"class": "summarization", "ttft_ms": 60_000, "tpot_ms": 10_000}},
        )
    )
    promise = chunks[0].model_extra["slo"]  # type: ignore[index]
    assert promise["admission"] == "standard"
    assert promise["class"] == "summarization"
    assert (promise["ttft_ms"], promise["tpot_ms"]) == (60_000, 10_000)
    assert chunks[-2].choices[0].finish_reason == "length"
    outcome = chunks[-2].model_extra["slo"]["outcome"]  # type: ignore[index]
    assert outcome["promised"] is True
    assert outcome["kept"] is True
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20


def test_seeded_stream_equals_the_whole_answer(emulated_cluster: Cluster) -> None:
    body = {"messages": HI, "seed": 3, "max_tokens": 40, "ignore_eos": True}
    whole = post(emulated_cluster, body).json()["choices"][0]["message"]["content"]
    text = ""
    for line in post(emulated_cluster, {**body, "stream": True}).text.splitlines():
        if line.startswith("data: {"):
            text += json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "")
    assert text == whole != ""


def test_completions_with_several_prompts_and_samples(emulated_cluster: Cluster, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=emulated_cluster.model, prompt=["one", "two"], n=2, max_tokens=5, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(choice.text for choice in answer.choices)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20


def test_models_and_readiness(emulated_cluster: Cluster, client: openai.OpenAI) -> None:
    found = {model.id: model for model in client.models.list()}
    assert found[emulated_cluster.model].model_extra["ready_replicas"] == 2  # type: ignore[index]
    assert httpx.get(emulated_cluster.url + "/ready").status_code == 200
    assert httpx.get(emulated_cluster.url + "/health").status_code == 200
    assert "http_requests_total" in httpx.get(emulated_cluster.url + "/metrics").text


@pytest.mark.parametrize(
    ("change", "headers", "status", "param"),
    [
        ({"slo": {"class": "no-such-class"}}, {}, 400, "slo.class"),
        ({}, {"x_slo_class": "no-such-class"}, 400, "slo.class"),
        ({}, {"x_tenant": "no-such-tenant"}, 400, "x-tenant"),
        ({"max_tokens": 1_000_000}, {}, 400, "max_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 20_000}]}, {}, 400, "messages"),
        ({"model": "no-such-model"}, {}, 404, "model"),
    ],
)
def test_the_core_s_refusals(
    emulated_cluster: Cluster, change: dict[str, Any], headers: dict[str, str], status: int, param: str
) -> None:
    answer = post(emulated_cluster, {"messages": HI, **change}, **headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_is_no_failure_of_the_server(emulated_cluster: Cluster, stream: bool) -> None:
    answer = post(emulated_cluster, {"messages": HI, "response_format": {"type": "json_object"}, "stream": stream})
    text = answer.text.split("\n\n")[-3].removeprefix("data: ") if stream else answer.text
    assert answer.status_code == (200 if stream else 501)
    assert json.loads(text)["error"]["code"] == "unimplemented"
    assert "structured output" in json.loads(text)["error"]["message"]


def test_impossible_slo_is_best_effort_or_refused_as_asked(emulated_cluster: Cluster) -> None:
    body = {"messages": HI, "max_tokens": 3, "slo": {"ttft_ms": 0.001}}
    served = post(emulated_cluster, body)
    assert served.status_code == 200
    assert served.json()["slo"]["admission"] == "best_effort"
    assert served.json()["slo"]["reason"]
    assert served.json()["slo"]["outcome"]["attained"] is False
    refused = post(emulated_cluster, {**body, "slo": {"ttft_ms": 0.001, "on_miss": "reject"}})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["message"]


def test_request_id_is_the_cluster_s_id(emulated_cluster: Cluster) -> None:
    mine = f"mine-{uuid.uuid4().hex}"
    answer = post(emulated_cluster, {"messages": HI, "max_tokens": 2}, x_request_id=mine)
    assert answer.json()["id"] == answer.headers["x-request-id"] == mine
    assert emulated_cluster.slosctl_json("requests", "show", mine)["request_id"] == mine


def test_client_that_leaves_cancels_its_request(emulated_cluster: Cluster) -> None:
    mine = f"mine-{uuid.uuid4().hex}"
    body = {"model": emulated_cluster.model, "messages": HI, "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with httpx.stream(
        "POST", emulated_cluster.url + "/v1/chat/completions", json=body, headers={"x-request-id": mine}, timeout=60
    ) as answer:
        lines = answer.iter_lines()
        for _ in range(5):
            next(lines)
        again = httpx.post(
            emulated_cluster.url + "/v1/chat/completions", json=body, headers={"x-request-id": mine}, timeout=60
        )
        assert again.status_code == 409
        assert again.json()["error"]["param"] == "x-request-id"
    wait_until(lambda: running(emulated_cluster) == 0)
    assert emulated_cluster.slosctl_json("requests", "show", mine)["phase"] == "finished"


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(request=requests())
def test_random_bodies_never_break_the_cluster(emulated_cluster: Cluster, request: tuple[str, dict[str, Any]]) -> None:
    path, body = request
    if "model" in body:
        body["model"] = emulated_cluster.model
    body.setdefault("max_tokens", 3)
    content = json.dumps(body).encode()
    answer = httpx.post(emulated_cluster.url + path, content=content, timeout=60)
    # 429: asked to be refused rather than served without a promise. 501: the emulated engine has no structured output.
    allowed = {200, 400, 404, 429} | ({501} if body.get("response_format") else set())
    assert answer.status_code in allowed, answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_nothing_is_left_after_random_bodies(emulated_cluster: Cluster) -> None:
    wait_until(lambda: running(emulated_cluster) == 0)
    assert httpx.get(emulated_cluster.url + "/ready").status_code == 200
    assert post(emulated_cluster, {"messages": HI, "max_tokens": 2}).status_code == 200
