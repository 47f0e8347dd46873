"""The `openai` client and raw HTTP against a live server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from services.controller.contract import ApiError, GenerationCall
from services.controller.tokenizer import Catalog
from tests.services.controller.http.conftest import HI, MODEL, THINKER, TOOLED, Serve, client_of, replying, wait_until
from tests.services.controller.http.echo import EchoGateway

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "now", "parameters": {"type": "object", "properties": {}}},
}
CALL = 'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Öslo"}}\n</tool_call>'


def test_chat_whole_answer(serve: Serve, catalog: Catalog) -> None:
    gateway = replying(catalog, "Grüße, 世界 🌍!")
    answer = client_of(serve(gateway)).chat.completions.create(model=MODEL, messages=HI, seed=7)
    assert answer.choices[0].message.content == "Grüße, 世界 🌍!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    prompt_tokens = len(gateway.calls[0].token_ids)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == prompt_tokens
    assert answer.usage.completion_tokens == len("Grüße, 世界 🌍!".encode())
    assert answer.usage.total_tokens == prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == prompt_tokens // 2
    slo = answer.model_extra["slo"]  # type: ignore[index]
    assert slo["admission"] == "standard"
    assert slo["replica"] == "echo-0"
    assert slo["outcome"]["kept"] is True
    assert slo["outcome"]["attained"] is True
    assert answer.id == gateway.calls[0].request_id


def test_chat_stream(serve: Serve, catalog: Catalog) -> None:
    url = serve(replying(catalog, "Grüße, 世界 🌍!"))
    chunks = list(
        client_of(url).chat.completions.create(
            model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].model_extra["slo"]["admission"] == "standard"  # type: ignore[index]
    assert "outcome" not in chunks[0].model_extra["slo"]  # type: ignore[index]
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "Grüße, 世界 🌍!"
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop"
    assert chunks[-2].model_extra["slo"]["outcome"]["attained"] is True  # type: ignore[index]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len("Grüße, 世界 🌍!".encode())
    assert {c.id for c in chunks} == {chunks[0].id}


def test_stream_without_usage_has_none(serve: Serve, catalog: Catalog) -> None:
    chunks = list(
        client_of(serve(replying(catalog, "abc"))).chat.completions.create(model=MODEL, messages=HI, stream=True)
    )
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)


def test_sampling_reaches_the_core_as_given(serve: Serve, catalog: Catalog) -> None:
    gateway = replying(catalog, "abcdef")
    given: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 11, "stop": ["END", "\n\n"],
        "stop_token_ids": [3, 4], "max_tokens": 5, "min_tokens": 2, "presence_penalty": 0.25,
        "frequency_penalty": -0.5, "repetition_penalty": 1.5, "ignore_eos": True, "logit_bias": {"7": -100, "8": 5},
        "user": "someone",
    }  # fmt: skip
    answer = httpx.post(serve(gateway) + "/v1/chat/completions", json={"model": MODEL, "messages": HI, **given})
    assert answer.status_code == 200, answer.text
    sampling = gateway.calls[0].sampling
    for name, value in given.items():
        if name == "user":
            continue
        if name == "logit_bias":
            assert dict(sampling.logit_bias) == {7: -100, 8: 5}
        elif isinstance(value, list):
            assert list(getattr(sampling, name)) == value
        else:
            assert getattr(sampling, name) == value, name
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert answer.json()["choices"][0]["message"]["content"] == "abcde"


def test_nothing_given_leaves_the_core_its_defaults(serve: Serve, gateway: EchoGateway) -> None:
    httpx.post(serve(gateway) + "/v1/chat/completions", json={"model": MODEL, "messages": HI}).raise_for_status()
    assert gateway.calls[0].sampling.ListFields() == []
    assert gateway.calls[0].slo.ListFields() == []


def test_completions_forms_of_prompt(serve: Serve, gateway: EchoGateway) -> None:
    client = client_of(serve(gateway))
    assert client.completions.create(model=MODEL, prompt="one two", max_tokens=50).choices[0].text == "one two"
    assert len(client.completions.create(model=MODEL, prompt="x" * 40).choices[0].text) == 16
    ids = gateway.catalog[MODEL].encode("abc")
    assert client.completions.create(model=MODEL, prompt=ids).choices[0].text == "abc"
    several = client.completions.create(model=MODEL, prompt=["ab", "cd"], n=2)
    assert [(c.index, c.text) for c in several.choices] == [(0, "ab"), (1, "ab"), (2, "cd"), (3, "cd")]
    assert several.usage is not None
    assert several.usage.prompt_tokens == 4
    assert several.usage.completion_tokens == 8
    lists = client.completions.create(model=MODEL, prompt=[ids, ids[:1]])
    assert [choice.text for choice in lists.choices] == ["abc", "a"]


@pytest.mark.parametrize("stream", [False, True])
def test_completions_echo(serve: Serve, catalog: Catalog, stream: bool) -> None:
    client = client_of(serve(replying(catalog, " world")))
    answer: Any = client.completions.create(model=MODEL, prompt="hello", echo=True, stream=stream)
    text = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
    assert text == "hello world"


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_have_own_ids_and_seeds(serve: Serve, catalog: Catalog, stream: bool) -> None:
    gateway = EchoGateway(catalog, reply=lambda call: f"seed {call.sampling.seed}", step_s=0.002)
    client = client_of(serve(gateway))
    answer: Any = client.chat.completions.create(model=MODEL, messages=HI, n=3, seed=(1 << 63) - 2, stream=stream)
    texts = {0: "", 1: "", 2: ""}
    if stream:
        for chunk in answer:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        texts = {choice.index: choice.message.content for choice in answer.choices}
        assert all(choice.model_extra["slo"]["outcome"]["kept"] for choice in answer.choices)
    top = (1 << 63) - 1
    assert texts == {0: f"seed {top - 1}", 1: f"seed {top}", 2: f"seed {-top - 1}"}
    ids = [call.request_id for call in gateway.calls]
    assert ids == [f"{ids[0][:-2]}-{index}" for index in range(3)]


@pytest.mark.parametrize("stream", [False, True])
def test_one_refused_choice_refuses_all_and_leaves_none_running(serve: Serve, catalog: Catalog, stream: bool) -> None:
    def reply(call: GenerationCall) -> str:
        if call.request_id.endswith("-2"):
            raise ApiError("RESOURCE_EXHAUSTED", "no room", retry_after_s=2.2)
        return "x" * 1000

    gateway = EchoGateway(catalog, reply=reply, step_s=0.01, promise_first=False)
    body = {"model": MODEL, "messages": HI, "n": 3, "stream": stream}
    answer = httpx.post(serve(gateway) + "/v1/chat/completions", json=body)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    wait_until(lambda: not gateway.running)


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(serve: Serve, catalog: Catalog, stream: bool) -> None:
    client = client_of(serve(replying(catalog, "aé")))
    answer: Any = client.chat.completions.create(model=MODEL, messages=HI, logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        content = [p for c in answer if c.choices[0].logprobs for p in c.choices[0].logprobs.content]
    else:
        content = answer.choices[0].logprobs.content
    assert [position.bytes for position in content] == [[97], [0xC3], [0xA9]]
    assert content[0].token == "a"
    assert all(len(position.top_logprobs) == 2 for position in content)
    assert all(position.top_logprobs[0].logprob >= position.top_logprobs[1].logprob for position in content)


def test_chat_logprobs_without_alternatives(serve: Serve, catalog: Catalog) -> None:
    client = client_of(serve(replying(catalog, "ab")))
    content = client.chat.completions.create(model=MODEL, messages=HI, logprobs=True).choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert [(position.token, position.top_logprobs) for position in content] == [("a", []), ("b", [])]


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs(serve: Serve, catalog: Catalog, stream: bool) -> None:
    client = client_of(serve(replying(catalog, "abc")))
    answer: Any = client.completions.create(model=MODEL, prompt="p", logprobs=2, stream=stream)
    chunks = [chunk.choices[0].logprobs for chunk in (answer if stream else [answer])]
    found = [chunk for chunk in chunks if chunk is not None]
    assert [token for chunk in found for token in chunk.tokens] == ["a", "b", "c"]
    assert [offset for chunk in found for offset in chunk.text_offset] == [0, 1, 2]
    assert all(len(top) == 2 for chunk in found for top in chunk.top_logprobs)


@pytest.mark.parametrize("model", [MODEL, TOOLED])
@pytest.mark.parametrize("stream", [False, True])
def test_tool_call(serve: Serve, catalog: Catalog, model: str, stream: bool) -> None:
    gateway = replying(catalog, CALL)
    client = client_of(serve(gateway))
    answer: Any = client.chat.completions.create(model=model, messages=HI, tools=[WEATHER], stream=stream)
    if stream:
        chunks = list(answer)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
        assert [call.index for call in calls] == [0]
    else:
        calls = answer.choices[0].message.tool_calls
        content, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert content == "Let me look."
    assert reason == "tool_calls"
    assert calls[0].function.name == "weather"
    assert json.loads(calls[0].function.arguments) == {"city": "Öslo"}
    assert calls[0].id.startswith("call_")
    prompt = catalog[model].decode(gateway.calls[0].token_ids, skip_special_tokens=False)
    assert '"name": "weather"' in prompt
    assert prompt.startswith("TOOLS" if model == TOOLED else "<|im_start|>system\n# Tools")
    assert gateway.calls[0].has_tools


def test_tool_results_go_back_to_the_model(serve: Serve, catalog: Catalog) -> None:
    gateway = replying(catalog, "It rains.")
    client = client_of(serve(gateway))
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    messages: list[Any] = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == "It rains."
    assert answer.choices[0].finish_reason == "stop"
    prompt = catalog[MODEL].decode(gateway.calls[0].token_ids)
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in prompt
    assert "<tool_response>\nrain\n</tool_response>" in prompt


def test_tool_choice_none_shows_no_tools_and_parses_no_calls(serve: Serve, catalog: Catalog) -> None:
    gateway = replying(catalog, CALL)
    answer = client_of(serve(gateway)).chat.completions.create(
        model=MODEL, messages=HI, tools=[WEATHER], tool_choice="none"
    )
    assert answer.choices[0].message.content == CALL
    assert answer.choices[0].message.tool_calls is None
    assert "weather" not in catalog[MODEL].decode(gateway.calls[0].token_ids)
    assert not gateway.calls[0].has_tools


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_kept_apart(serve: Serve, catalog: Catalog, stream: bool) -> None:
    gateway = replying(catalog, "hm, 2+2</think>4", cut=3)
    answer: Any = client_of(serve(gateway)).chat.completions.create(model=THINKER, messages=HI, stream=stream)
    parts = [chunk.choices[0].delta for chunk in answer] if stream else [answer.choices[0].message]
    assert "".join((part.model_extra or {}).get("reasoning_content") or "" for part in parts) == "hm, 2+2"
    assert "".join(part.content or "" for part in parts) == "4"
    assert gateway.calls[0].thinks


def test_reasoning_stays_in_the_text_of_completions(serve: Serve, catalog: Catalog) -> None:
    gateway = replying(catalog, "hm</think>4", cut=3)
    answer = client_of(serve(gateway)).completions.create(model=THINKER, prompt="2+2 <think>\n", max_tokens=99)
    assert answer.choices[0].text == "hm</think>4"


def test_response_formats(serve: Serve, gateway: EchoGateway) -> None:
    client = client_of(serve(gateway))
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
    client.chat.completions.create(model=MODEL, messages=HI, response_format=form)
    assert json.loads(gateway.calls[-1].sampling.json_schema) == schema
    client.chat.completions.create(model=MODEL, messages=HI, response_format={"type": "json_object"})
    assert gateway.calls[-1].sampling.json_object
    client.chat.completions.create(model=MODEL, messages=HI, response_format={"type": "text"})
    assert not gateway.calls[-1].sampling.json_object


def test_models(serve: Serve, gateway: EchoGateway) -> None:
    client = client_of(serve(gateway))
    assert {model.id for model in client.models.list()} == {MODEL, THINKER, TOOLED}
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope/nope")


def test_errors_are_the_client_s_own_types(serve: Serve, gateway: EchoGateway) -> None:
    client = client_of(serve(gateway))
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=HI)
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=HI, temperature=-1)
    assert wrong.value.param == "temperature"
