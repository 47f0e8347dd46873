"""What only a real model can show about the HTTP API: structure, probabilities, stop strings, greedy text."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from tests.cluster import Cluster

pytestmark = [pytest.mark.real_engine, pytest.mark.timeout(300)]

HI = [{"role": "user", "content": "Name three colours of the rainbow."}]
LOOSE = {"slo": {"ttft_ms": 60_000, "tpot_ms": 5_000}}


@pytest.fixture
def client(real_cluster: Cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{real_cluster.url}/v1", api_key="none", max_retries=0, timeout=120)


def test_greedy_stream_equals_the_whole_answer(real_cluster: Cluster, client: openai.OpenAI) -> None:
    given: dict[str, Any] = {
        "model": real_cluster.model,
        "messages": HI,
        "max_tokens": 24,
        "temperature": 0,
        "extra_body": LOOSE,
    }
    whole = client.chat.completions.create(**given)
    chunks = client.chat.completions.create(**given, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 24


def test_output_follows_the_schema(real_cluster: Cluster, client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "sure": {"type": "boolean"}},
        "required": ["colour", "sure"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=real_cluster.model,
        messages=[{"role": "user", "content": "Which colour is grass? Answer in JSON."}],
        max_tokens=60,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        extra_body=LOOSE,
    )
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), schema)


def test_greedy_tokens_are_the_most_probable_ones(real_cluster: Cluster, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=real_cluster.model,
        messages=HI,  # type: ignore[arg-type]
        max_tokens=6,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
        extra_body=LOOSE,
    )
    positions = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert positions is not None
    assert answer.usage is not None
    assert len(positions) == answer.usage.completion_tokens
    for position in positions:
        assert len(position.top_logprobs) == 3
        assert position.top_logprobs[0].logprob >= position.top_logprobs[1].logprob >= position.top_logprobs[2].logprob
        assert position.logprob == pytest.approx(position.top_logprobs[0].logprob, abs=0.05)
        assert position.logprob <= 0


def test_stop_strings_end_the_output_and_are_not_in_it(real_cluster: Cluster, client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": real_cluster.model, "prompt": "1, 2, 3, 4,", "max_tokens": 20, "temperature": 0}
    free = client.completions.create(**given, extra_body=LOOSE).choices[0].text
    stop = free[len(free) // 2 :][:2]
    assert len(stop) == 2
    stopped = client.completions.create(**given, stop=[stop], extra_body=LOOSE).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == free[: free.index(stop)]


def test_tools_are_served(real_cluster: Cluster, client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    answer = client.chat.completions.create(
        model=real_cluster.model,
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        tools=[tool],
        max_tokens=30,
        temperature=0,
        extra_body=LOOSE,
    )
    message = answer.choices[0].message
    assert message.content or message.tool_calls
    assert (answer.choices[0].finish_reason == "tool_calls") == bool(message.tool_calls)


def test_what_the_engine_cannot_do_is_the_client_s_error(real_cluster: Cluster) -> None:
    schema = {"type": "object", "patternProperties": {"(": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"model": real_cluster.model, "messages": HI, "max_tokens": 5, "response_format": form, **LOOSE}
    answer = httpx.post(real_cluster.url + "/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
