"""Random requests: never a 5xx, always one of the two shapes, nothing left running, and the server goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.controller.contract import ApiError
from services.controller.http.app import build_app
from services.controller.http.body import parse_body
from services.controller.http.openapi import openapi_document
from services.controller.http.schema import ChatRequest, CompletionRequest
from services.controller.tokenizer import Catalog
from tests.services.controller.http.conftest import MODEL, THINKER, TOOLED
from tests.services.controller.http.echo import EchoGateway

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 2, 10**30, -(10**30), 1 << 63, -1.5, 0.0, 1e308, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["", "auto", "none", "text", "json_object", "coding", "user", MODEL, "\x00", "<|im_end|>", "é"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
FIELDS = sorted(set(ChatRequest.model_fields) | set(CompletionRequest.model_fields) | {"store", "suffix", "x"})
SLO_FIELDS = [
    "class",
    "ttft_ms",
    "ttft_slowdown",
    "tpot_ms",
    "thinking_tpot_ms",
    "round",
    "on_miss",
    "output_tokens_hint",
]
# Values that are right often enough for a body to get past the checks.
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1),
    "seed": st.integers(-(1 << 63), (1 << 63) - 1),
    "n": st.integers(1, 3),
    "max_tokens": st.integers(1, 30),
    "min_tokens": st.integers(0, 3),
    "stop": st.text(min_size=1, max_size=5) | st.lists(st.text(min_size=1, max_size=5), max_size=3),
    "stream": st.booleans(),
    "logprobs": st.booleans() | st.integers(0, 3),
    "top_logprobs": st.integers(0, 3),
    "echo": st.booleans(),
    "logit_bias": st.dictionaries(st.integers(0, 200).map(str), st.floats(-100, 100), max_size=3),
    "tools": st.just([TOOL]),
    "tool_choice": st.sampled_from(["auto", "none"]),
    "response_format": st.sampled_from(
        [
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        ]
    ),
    "slo": st.fixed_dictionaries(
        {},
        optional={
            "class": st.sampled_from(["coding", "chatbot"]),
            "ttft_ms": st.floats(1, 1e5),
            "tpot_ms": st.integers(1, 1000),
            "round": st.sampled_from(["inner", "last"]),
            "on_miss": st.sampled_from(["best_effort", "reject"]),
            "output_tokens_hint": st.integers(1, 500),
        },
    )
    | st.dictionaries(st.sampled_from(SLO_FIELDS), SCALARS | st.integers(1, 1000), max_size=4),
    "prompt": st.text(max_size=40)
    | st.lists(st.integers(0, 300), max_size=5)
    | st.lists(st.text(max_size=9), max_size=3),
    "messages": st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
                "content": st.text(max_size=20)
                | st.just([{"type": "text", "text": "part"}])
                | st.just('<tool_call>{"name": "f", "arguments": {}}</tool_call>'),
            }
        ),
        max_size=4,
    ),
}


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PATHS = {CHAT: ChatRequest, COMPLETIONS: CompletionRequest}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Path and body: all fields plausible in half of the cases, else some of them anything at all."""
    path = draw(st.sampled_from(list(PATHS)))
    hostile = draw(st.booleans())
    body: dict[str, Any] = {"model": draw(st.sampled_from([MODEL, THINKER, TOOLED]))}
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": draw(st.text(max_size=30))}]
    else:
        body["prompt"] = draw(st.text(min_size=1, max_size=30))
    names = sorted(set(FIELDS) if hostile else set(PATHS[path].model_fields) & set(LIKELY))
    for name in draw(st.lists(st.sampled_from(names), max_size=5, unique=True)):
        body[name] = draw(JSON if hostile and draw(st.booleans()) else LIKELY.get(name, JSON))
    if draw(st.booleans()):
        body["stream"] = True
    if "top_logprobs" in body and not hostile:
        body["logprobs"] = True
    return path, body


HEADERS = st.just({}) | st.dictionaries(
    st.sampled_from(["x-slo-class", "x-slo-ttft-ms", "x-slo-tpot-ms", "x-session-id", "x-tenant", "authorization"]),
    st.sampled_from(["100", "0", "nan", "coding", "-1", ""])
    | st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20),
    max_size=2,
)


class Server:
    """One application that lives through all examples."""

    def __init__(self, catalog: Catalog) -> None:
        self.gateway = EchoGateway(catalog, cut=1)
        self.runner = asyncio.Runner()
        transport = httpx.ASGITransport(app=build_app(self.gateway, catalog), raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30)

    def post(self, path: str, content: bytes, headers: dict[str, str]) -> httpx.Response:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        return self.runner.run(self.client.post(path, content=content, headers=raw))


@pytest.fixture(scope="module")
def server(catalog: Catalog) -> Iterator[Server]:
    server = Server(catalog)
    yield server
    server.runner.run(server.client.aclose())
    server.runner.close()


def check(server: Server, response: httpx.Response, stream: bool) -> None:
    assert response.status_code in (200, 400, 404), (response.status_code, response.text)
    assert server.gateway.running == {}
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    elif stream:
        events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        assert all("error" not in json.loads(event) for event in events[:-1])
    else:
        assert response.json()["choices"]


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(request=requests(), headers=HEADERS)
def test_bodies_near_the_schema(server: Server, request: tuple[str, dict[str, Any]], headers: dict[str, str]) -> None:
    path, body = request
    response = server.post(path, json.dumps(body).encode(), headers)
    check(server, response, body.get("stream") is True)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(request=requests())
def test_what_is_accepted_fits_the_published_schema(request: tuple[str, dict[str, Any]]) -> None:
    path, body = request
    try:
        parse_body(json.dumps(body).encode(), PATHS[path])
    except ApiError:
        return
    document = openapi_document()
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate(body, {**document, **schema}, cls=jsonschema.Draft202012Validator)


def test_published_schemas_are_schemas() -> None:
    for schema in openapi_document()["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from(list(PATHS)), body=JSON.map(json.dumps) | st.text())
def test_any_text(server: Server, path: str, body: str) -> None:
    check(server, server.post(path, body.encode("utf-8", "surrogatepass"), {}), False)


@settings(max_examples=100, deadline=None)
@given(path=st.sampled_from(list(PATHS)), body=st.binary(max_size=200))
def test_any_bytes(server: Server, path: str, body: bytes) -> None:
    check(server, server.post(path, body, {}), False)


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                '{"name": "f", "arguments": {"é": "世"}}',
                "</tool_call>",
                "</think>",
                "Grüße 🌍",
                " \n",
                "<tool",
            ]
        ),
        max_size=8,
    ),
    cut=st.integers(0, 1 << 30),
    model=st.sampled_from([MODEL, THINKER, TOOLED]),
    tools=st.booleans(),
    logprobs=st.booleans(),
)
def test_streamed_text_equals_the_whole_answer(
    catalog: Catalog, pieces: list[str], cut: int, model: str, tools: bool, logprobs: bool
) -> None:
    gateway = EchoGateway(catalog, reply=lambda call: "".join(pieces), cut=cut)
    app = build_app(gateway, catalog)
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hi"}], "logprobs": logprobs}
    if tools:
        body["tools"] = [TOOL]

    async def ask(stream: bool) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            gateway.cut = cut + stream  # cut elsewhere each time
            return await client.post("/v1/chat/completions", json={**body, "stream": stream})

    whole = asyncio.run(ask(False)).json()["choices"][0]
    joined: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": [], "logprobs": []}
    for event in asyncio.run(ask(True)).text.split("\n\n")[:-2]:
        choice = json.loads(event.removeprefix("data: "))["choices"][0]
        for name in ("content", "reasoning_content", "tool_calls"):
            joined[name] += choice["delta"].get(name) or joined[name][:0]
        joined["logprobs"] += (choice["logprobs"] or {}).get("content", [])
        joined["finish_reason"] = choice["finish_reason"]
    message = whole["message"]
    assert joined["content"] == (message["content"] or "")
    assert joined["reasoning_content"] == message.get("reasoning_content", "")
    assert [call["function"] for call in joined["tool_calls"]] == [
        call["function"] for call in message.get("tool_calls", [])
    ]
    assert joined["logprobs"] == ((whole["logprobs"] or {}).get("content") or [])
    assert joined["finish_reason"] == whole["finish_reason"]
    if model != THINKER and not tools:
        assert message["content"] == "".join(pieces)
