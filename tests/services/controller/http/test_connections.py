"""Clients that leave, stall or send too much, and answers that come late or fail, at a live server."""

from __future__ import annotations

import json
import socket

import httpx
import openai
import pytest

from services.controller.tokenizer import Catalog
from tests.services.controller.http.conftest import HI, MODEL, Serve, client_of, replying, wait_until
from tests.services.controller.http.echo import EchoGateway


@pytest.mark.parametrize("gone_after", ["promise", "tokens"])
@pytest.mark.parametrize("choices", [1, 3])
def test_client_that_leaves_a_stream_cancels_its_request(
    serve: Serve, catalog: Catalog, gone_after: str, choices: int
) -> None:
    gateway = replying(catalog, "x" * 2000, step_s=0.01 if gone_after == "tokens" else 30)
    body = {"model": MODEL, "messages": HI, "stream": True, "n": choices}
    with httpx.stream("POST", serve(gateway) + "/v1/chat/completions", json=body) as answer:
        parts = answer.iter_raw()
        next(parts)
        assert len(gateway.running) == choices
    wait_until(lambda: not gateway.running)
    assert gateway.closed_early == choices


def test_client_that_leaves_before_any_answer_cancels_its_request(serve: Serve, catalog: Catalog) -> None:
    gateway = replying(catalog, "x" * 2000, step_s=0.05)
    host, port = serve(gateway).removeprefix("http://").split(":")
    body = json.dumps({"model": MODEL, "messages": HI}).encode()
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
        connection.sendall(body)
        wait_until(lambda: bool(gateway.running))
    wait_until(lambda: not gateway.running)
    assert gateway.closed_early == 1


@pytest.mark.parametrize("stream", [False, True])
def test_request_timeout_cancels_and_says_so(serve: Serve, catalog: Catalog, stream: bool) -> None:
    gateway = replying(catalog, "x" * 2000, step_s=0.02)
    url = serve(gateway, request_timeout_s=0.3)
    answer = httpx.post(url + "/v1/chat/completions", json={"model": MODEL, "messages": HI, "stream": stream})
    if stream:
        events = [line for line in answer.text.splitlines() if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    else:
        assert answer.status_code == 504
        assert "longer than 0.3 s" in answer.json()["error"]["message"]
    wait_until(lambda: not gateway.running)


def test_failure_inside_a_stream_reaches_the_client(serve: Serve, catalog: Catalog) -> None:
    gateway = replying(catalog, "abcdef", fail_after=3)
    chunks = client_of(serve(gateway)).chat.completions.create(model=MODEL, messages=HI, stream=True)
    seen = []
    with pytest.raises(openai.APIError, match="the engine died"):
        seen.extend(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "".join(seen) == "abc, last words"
    answer = httpx.post(serve(gateway) + "/v1/chat/completions", json={"model": MODEL, "messages": HI})
    assert answer.status_code == 500


def test_large_body_is_refused_and_the_server_goes_on(serve: Serve, gateway: EchoGateway) -> None:
    url = serve(gateway, max_body_bytes=10_000)
    for _ in range(3):
        answer = httpx.post(url + "/v1/completions", json={"model": MODEL, "prompt": "x" * 3_000_000})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
    assert httpx.post(url + "/v1/completions", json={"model": MODEL, "prompt": "x"}).status_code == 200


def test_long_prompts_are_tokenized_beside_the_other_requests(serve: Serve, catalog: Catalog) -> None:
    gateway = replying(catalog, "ok")
    url = serve(gateway)
    answer = httpx.post(url + "/v1/completions", json={"model": MODEL, "prompt": "x" * 3000 + "é" * 500})
    assert answer.status_code == 200
    assert len(gateway.calls[0].token_ids) == 4000
    too_long = httpx.post(url + "/v1/chat/completions", json={"model": MODEL, "messages": HI * 3000}, timeout=30)
    assert too_long.status_code == 400
    assert "window" in too_long.json()["error"]["message"]


def test_stream_that_waits_says_that_it_lives(serve: Serve, catalog: Catalog) -> None:
    gateway = replying(catalog, "ab", step_s=0.5)
    answer = httpx.post(
        serve(gateway, keep_alive_s=0.1) + "/v1/chat/completions",
        json={"model": MODEL, "messages": HI, "stream": True},
    )
    assert answer.text.count(": waiting\n\n") >= 2
    chunks = list(
        client_of(serve(gateway, keep_alive_s=0.1)).chat.completions.create(model=MODEL, messages=HI, stream=True)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "ab"


def test_slow_body_times_out_and_others_go_on(serve: Serve, gateway: EchoGateway) -> None:
    url = serve(gateway, body_timeout_s=0.3)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert httpx.post(url + "/v1/completions", json={"model": MODEL, "prompt": "a"}).status_code == 200
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
