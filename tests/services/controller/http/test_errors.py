"""Every bad request gets a specific error in OpenAI's shape, and the core never sees it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from services.common.metrics import CollectorRegistry
from services.common.security import ApiKeys
from services.controller.contract import ApiError
from services.controller.http.app import build_app
from services.controller.http.settings import HttpSettings
from services.controller.tokenizer import Catalog
from tests.services.controller.http.conftest import MODEL
from tests.services.controller.http.echo import EchoGateway

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "hi"}


def ask(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, timeout=20, **options)

    return asyncio.run(run())


@pytest.fixture
def app(gateway: EchoGateway, catalog: Catalog) -> Any:
    return build_app(gateway, catalog)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return dict(body["error"])


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"temperature": "0.5"}, "temperature", "valid number"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"temperature": 10**400}, "temperature", ""),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"min_p": 1.5}, "min_p", ""),
        ({"seed": 1 << 63}, "seed", ""),
        ({"seed": 1.5}, "seed", "integer"),
        ({"n": 0}, "n", ""),
        ({"n": 17}, "n", ""),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 10**12}, "max_tokens", ""),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens", "at most max_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "max_completion_tokens"),
        ({"presence_penalty": 3}, "presence_penalty", ""),
        ({"frequency_penalty": -3}, "frequency_penalty", ""),
        ({"repetition_penalty": 0}, "repetition_penalty", ""),
        ({"stop": ""}, "stop[0]", "at least 1"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": 3}, "stop", "list"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", ""),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"1": 101}}, "logit_bias[1]", ""),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "vocabulary"),
        ({"stop_token_ids": [99999]}, "stop_token_ids", "vocabulary"),
        ({"logprobs": 3}, "logprobs", "boolean"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ""),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"stream": True, "stream_options": {"include": 1}}, "stream_options.include", "not a known field"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"response_format": {"type": "xml"}}, "response_format.type", ""),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "thing"}}}},
            "response_format.json_schema.schema",
            "not a JSON schema",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", ""),
        ({"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "tools", "same name"),
        ({"tool_choice": "required"}, "tool_choice", ""),
        ({"tool_choice": "auto"}, "tool_choice", "needs tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "a"}}}, "tool_choice", ""),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", ""),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood", "not a known field"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id", ""),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages[0].tool_calls", "assistant"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "images",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
            "JSON",
        ),
        ({"model": ""}, "model", ""),
        ({"model": None}, "model", ""),
        ({"parallel_tool_calls": False}, "parallel_tool_calls", "field of OpenAI's API that is not supported"),
        ({"store": True}, "store", "not supported"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "not supported"),
        ({"chat_template_kwargs": {}}, "chat_template_kwargs", "not a known field"),
        ({"slo": {"ttft_ms": -1}}, "slo.ttft_ms", "greater than 0"),
        ({"slo": {"ttft_ms": 0}}, "slo.ttft_ms", "greater than 0"),
        ({"slo": {"tpot_ms": 1e300}}, "slo.tpot_ms", "less than or equal to"),
        ({"slo": {"ttft_ms": 100, "ttft_slowdown": 3}}, "slo.ttft_slowdown", "not both"),
        ({"slo": {"ttft_slowdown": 0.5}}, "slo.ttft_slowdown", ""),
        ({"slo": {"class": "a b"}}, "slo.class", ""),
        ({"slo": {"round": "middle"}}, "slo.round", "inner"),
        ({"slo": {"on_miss": "retry"}}, "slo.on_miss", "best_effort"),
        ({"slo": {"output_tokens_hint": 0}}, "slo.output_tokens_hint", ""),
        ({"slo": {"deadline": 1}}, "slo.deadline", "not a known field"),
        ({"slo": "coding"}, "slo", ""),
    ],
)
def test_bad_field_is_named(app: Any, gateway: EchoGateway, change: dict[str, Any], param: str, words: str) -> None:
    error = error_of(ask(app, "POST", "/v1/chat/completions", content=json.dumps({**CHAT, **change})), 400)
    assert error["param"] == param
    assert param in error["message"]
    assert words in error["message"]
    assert error["code"] == "invalid_argument"
    assert gateway.calls == []


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [[]]}, "prompt", "non-empty"),
        ({"prompt": ["a", 1]}, "prompt", "only"),
        ({"prompt": [1, "a"]}, "prompt", "only"),
        ({"prompt": [1.5]}, "prompt", "only"),
        ({"prompt": [10**9]}, "prompt", "vocabulary"),
        ({"prompt": [-1]}, "prompt", "vocabulary"),
        ({"prompt": [True]}, "prompt", ""),
        ({"prompt": ["a"] * 65}, "prompt", "at most 64"),
        ({"prompt": ["a"] * 60, "n": 3}, "n", "128"),
        ({"prompt": None}, "prompt", ""),
        ({"logprobs": True}, "logprobs", "integer"),
        ({"echo": True, "logprobs": 1}, "echo", "prompt"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"messages": []}, "messages", "not a known field"),
    ],
)
def test_bad_completion_field_is_named(
    app: Any, gateway: EchoGateway, change: dict[str, Any], param: str, words: str
) -> None:
    error = error_of(ask(app, "POST", "/v1/completions", json={**COMPLETION, **change}), 400)
    assert error["param"] == param
    assert words in error["message"]
    assert gateway.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b'{"model": "\xff"}', b"{'model': 1}",
        b'{"temperature": NaN}', b'{"temperature": Infinity}', b"[" * 100_000, b'{"a":' * 100_000,
        b'{"model": "\\ud800"}', b"{} {}", b"\x00",
    ],
)  # fmt: skip
def test_malformed_json(app: Any, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        error = error_of(ask(app, "POST", path, content=body), 400)
        assert "JSON" in error["message"]


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_missing_field(app: Any, missing: str) -> None:
    error = error_of(
        ask(app, "POST", "/v1/chat/completions", json={k: v for k, v in CHAT.items() if k != missing}), 400
    )
    assert error["param"] == missing
    assert "required" in error["message"]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-slo-ttft-ms", "-5"), ("x-slo-ttft-ms", "nan"), ("x-slo-ttft-ms", "inf"), ("x-slo-ttft-ms", "0"),
        ("x-slo-ttft-ms", "1e3"), ("x-slo-ttft-ms", "1_000"), ("x-slo-ttft-ms", "99999999999"), ("x-slo-ttft-ms", ""),
        ("x-slo-tpot-ms", "fast"), ("x-slo-class", "a b"), ("x-slo-class", "x" * 129), ("x-session-id", "a/b"),
        ("x-tenant", "tenant!"), ("x-request-id", "has space"), ("x-request-id", "x" * 121),
    ],
)  # fmt: skip
def test_bad_header_is_named(app: Any, gateway: EchoGateway, header: str, value: str) -> None:
    error = error_of(ask(app, "POST", "/v1/chat/completions", json=CHAT, headers={header: value}), 400)
    assert error["param"] == header
    assert header in error["message"]
    assert gateway.calls == []


def test_header_given_twice(app: Any) -> None:
    twice = [("x-slo-class", "coding"), ("x-slo-class", "chatbot")]
    assert error_of(ask(app, "POST", "/v1/completions", json=COMPLETION, headers=twice), 400)["param"] == "x-slo-class"
    same = [("x-slo-class", "coding"), ("x-slo-class", "coding")]
    assert ask(app, "POST", "/v1/completions", json=COMPLETION, headers=same).status_code == 200


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("INVALID_ARGUMENT", 400), ("UNAUTHENTICATED", 401), ("PERMISSION_DENIED", 403), ("NOT_FOUND", 404),
        ("ALREADY_EXISTS", 409), ("RESOURCE_EXHAUSTED", 429), ("INTERNAL", 500), ("NO_SUCH_CODE", 500),
        ("UNAVAILABLE", 503), ("DEADLINE_EXCEEDED", 504),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_core_have_their_status(catalog: Catalog, code: str, status: int, stream: bool) -> None:
    gateway = EchoGateway(catalog, refuse=ApiError(code, "because", "slo.class", retry_after_s=0.2))
    response = ask(build_app(gateway, catalog), "POST", "/v1/chat/completions", json={**CHAT, "stream": stream})
    error = error_of(response, status)
    assert error["message"] == "because"
    assert error["param"] == "slo.class"
    assert error["code"] == code.lower()
    assert response.headers["retry-after"] == "1"


def test_fields_are_named_as_the_endpoint_names_them(catalog: Catalog) -> None:
    app = build_app(EchoGateway(catalog, refuse=ApiError("INVALID_ARGUMENT", "too long", "prompt")), catalog)
    assert error_of(ask(app, "POST", "/v1/chat/completions", json=CHAT), 400)["param"] == "messages"
    assert error_of(ask(app, "POST", "/v1/completions", json=COMPLETION), 400)["param"] == "prompt"


def test_unexpected_failure_is_an_error_and_not_a_hang(catalog: Catalog) -> None:
    def reply(call: object) -> str:
        raise ZeroDivisionError("secret detail")

    app = build_app(EchoGateway(catalog, reply=reply), catalog)
    response = ask(app, "POST", "/v1/chat/completions", json=CHAT)
    assert "secret" not in error_of(response, 500)["message"]


def test_unexpected_failure_outside_generation(catalog: Catalog) -> None:
    class Broken(EchoGateway):
        def models(self) -> list[Any]:
            raise ZeroDivisionError("secret detail")

    error = error_of(ask(build_app(Broken(catalog), catalog), "GET", "/v1/models"), 500)
    assert "secret" not in error["message"]


def test_duplicate_request_id(catalog: Catalog) -> None:
    app = build_app(EchoGateway(catalog, step_s=0.05), catalog)

    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            headers = {"x-request-id": "mine"}
            both = [client.post("/v1/completions", json=COMPLETION, headers=headers) for _ in range(2)]
            return sorted(response.status_code for response in await asyncio.gather(*both))

    assert asyncio.run(run()) == [200, 409]


def test_request_id_is_honoured_and_echoed(app: Any, gateway: EchoGateway) -> None:
    response = ask(app, "POST", "/v1/completions", json=COMPLETION, headers={"x-request-id": "mine:1"})
    assert response.headers["x-request-id"] == response.json()["id"] == gateway.calls[0].request_id == "mine:1"
    other = ask(app, "POST", "/v1/completions", json=COMPLETION)
    assert other.headers["x-request-id"] == other.json()["id"]
    assert ask(app, "GET", "/v1/nowhere", headers={"x-request-id": "mine:2"}).headers["x-request-id"] == "mine:2"
    assert ask(app, "GET", "/health", headers={"x-request-id": "not / ours"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404), ("POST", "/v1/embeddings", 404), ("GET", "/v1/models/nope", 404),
        ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405), ("POST", "/health", 405),
        ("POST", "/v1/chat/completions/", 404), ("OPTIONS", "/v1/completions", 405), ("GET", "/%ff%00", 404),
    ],
)  # fmt: skip
def test_unknown_paths_and_methods(app: Any, method: str, path: str, status: int) -> None:
    response = ask(app, method, path)
    error_of(response, status)
    if status == 405:
        assert response.headers["allow"]


def test_body_too_large(gateway: EchoGateway, catalog: Catalog) -> None:
    app = build_app(gateway, catalog, HttpSettings(max_body_bytes=1000))
    small = {**COMPLETION, "prompt": "x" * 800}
    assert ask(app, "POST", "/v1/completions", json=small).status_code == 200
    error = error_of(ask(app, "POST", "/v1/completions", json={**COMPLETION, "prompt": "x" * 1000}), 413)
    assert "1000 bytes" in error["message"]

    async def unannounced() -> Any:
        for _ in range(20):
            yield b" " * 100

    error_of(ask(app, "POST", "/v1/completions", content=unannounced()), 413)


def test_api_keys(gateway: EchoGateway, catalog: Catalog, tmp_path: Any) -> None:
    path = tmp_path / "keys"
    path.write_text("team-a secret-a\nteam-b secret-b\n")
    app = build_app(gateway, catalog, api_keys=ApiKeys(str(path)))

    def post(**headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(app, "POST", "/v1/completions", json=COMPLETION, headers=names)

    assert "Bearer" in error_of(post(), 401)["message"]
    error_of(post(authorization="Bearer wrong"), 401)
    error_of(post(authorization="Basic secret-a"), 401)
    error_of(ask(app, "GET", "/v1/models"), 401)
    assert ask(app, "GET", "/health").status_code == 200
    assert post(authorization="Bearer secret-b").status_code == 200
    assert gateway.calls[-1].tenant == "team-b"
    assert error_of(post(authorization="Bearer secret-b", x_tenant="team-a"), 403)["param"] == "x-tenant"


def test_health_and_readiness(gateway: EchoGateway, catalog: Catalog) -> None:
    app = build_app(gateway, catalog)
    assert ask(app, "GET", "/ready").status_code == 200
    gateway.not_ready = "no worker is connected; start one"
    response = ask(app, "GET", "/ready")
    assert error_of(response, 503)["message"] == gateway.not_ready
    assert ask(app, "GET", "/health").status_code == 200
    assert ask(app, "HEAD", "/health").status_code == 200


def test_metrics_count_requests_by_route(gateway: EchoGateway, catalog: Catalog) -> None:
    registry = CollectorRegistry()
    app = build_app(gateway, catalog, registry=registry)
    ask(app, "POST", "/v1/completions", json=COMPLETION)
    ask(app, "POST", "/v1/completions", json={})
    ask(app, "GET", "/v1/models/tiny")
    for number in range(3):
        ask(app, "GET", f"/scan/{number}")
    text = ask(app, "GET", "/metrics").text
    assert 'http_requests_total{handler="/v1/completions",method="POST",status="200"} 1.0' in text
    assert 'http_requests_total{handler="/v1/completions",method="POST",status="400"} 1.0' in text
    assert 'http_requests_total{handler="/v1/models/{model:path}",method="GET",status="200"} 1.0' in text
    assert 'http_requests_total{handler="none",method="GET",status="404"} 3.0' in text
    assert 'http_request_duration_seconds_count{handler="/v1/completions",method="POST"} 2.0' in text


def test_openapi_describes_every_field(app: Any) -> None:
    document = ask(app, "GET", "/openapi.json").json()
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"model", "messages", "tools", "slo", "max_completion_tokens"} <= set(fields)
    assert set(document["components"]["schemas"]["SloFields"]["properties"]) == {
        "class", "ttft_ms", "ttft_slowdown", "tpot_ms", "thinking_tpot_ms", "round", "on_miss", "output_tokens_hint",
    }  # fmt: skip
    served = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready", "/metrics"}
    assert served <= set(document["paths"])
