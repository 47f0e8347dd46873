"""What the real engine answers: tokens against float32 transformers, and every field of SamplingSpec."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace

import pytest
import torch

from engine.protocol import RequestRejected, SamplingSpec
from tests.engine_vllm.harness import GREEDY, Harness, Result, make_request
from tests.engine_vllm.reference import TOLERANCE, Reference

pytestmark = [pytest.mark.real_engine, pytest.mark.asyncio(loop_scope="package")]

QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain photosynthesis in two sentences.",
    "List three fruits.",
    "What is 12+30?",
    "Tell me a story about a fox.",
    "Why is the sky blue?",
    "Write a Python function that adds two numbers.",
    "Who wrote Hamlet?",
    "Give me advice on sleeping well.",
    "Name a colour.",
    "Summarise the plot of Romeo and Juliet. " * 12,
)


async def test_greedy_tokens_match_float32_transformers(engine: Harness, reference: Reference) -> None:
    """Batched, chunked prefill, prefix cache and all: teacher-forced, every token is the reference's within 0.05."""
    prompts = [reference.chat(question) for question in QUESTIONS]
    results = await asyncio.gather(*(engine.generate(p, replace(GREEDY, max_tokens=24)) for p in prompts))
    gaps = [reference.gap(p, r.tokens) for p, r in zip(prompts, results, strict=True)]
    assert max(gaps) <= TOLERANCE
    assert sum(gap == 0 for gap in gaps) >= 0.8 * len(gaps)
    for result in results:
        assert result.finish_reason == ("stop" if result.tokens[-1] == reference.tokenizer.eos_token_id else "length")
        assert result.text == reference.tokenizer.decode(result.tokens, skip_special_tokens=True)


async def test_end_of_sequence_stops_unless_ignored(engine: Harness, reference: Reference) -> None:
    prompt = reference.chat("What is the capital of France?")
    stopped = await engine.generate(prompt, replace(GREEDY, max_tokens=20))
    assert stopped.finish_reason == "stop"
    assert stopped.tokens[-1] == reference.tokenizer.eos_token_id
    went_on = await engine.generate(prompt, replace(GREEDY, max_tokens=20, ignore_eos=True))
    assert (went_on.finish_reason, len(went_on.tokens)) == ("length", 20)


async def test_stop_string_ends_the_text_before_it(engine: Harness, reference: Reference) -> None:
    prompt = reference.chat("Write a short poem about the sea.")
    plain = await engine.generate(prompt, replace(GREEDY, max_tokens=24))
    stop = plain.text[20:26]
    result = await engine.generate(prompt, replace(GREEDY, max_tokens=24, stop=(stop, "never seen")))
    assert result.finish_reason == "stop"
    assert result.text == plain.text[: plain.text.index(stop)]
    assert result.tokens == plain.tokens[: len(result.tokens)]


async def test_stop_token_ends_the_output(engine: Harness, reference: Reference) -> None:
    prompt = reference.chat("Write a short poem about the sea.")
    plain = await engine.generate(prompt)
    token = plain.tokens[7]
    result = await engine.generate(prompt, replace(GREEDY, stop_token_ids=(token,)))
    assert result.finish_reason == "stop"
    assert result.tokens == plain.tokens[: plain.tokens.index(token) + 1]


async def test_min_tokens_holds_the_end_back(engine: Harness, reference: Reference) -> None:
    prompt = reference.chat("What is the capital of France?")
    result = await engine.generate(prompt, replace(GREEDY, max_tokens=30, min_tokens=20))
    assert len(result.tokens) >= 20
    assert reference.tokenizer.eos_token_id not in result.tokens[:19]


async def test_repetition_penalties_change_the_output_as_computed(engine: Harness, reference: Reference) -> None:
    """Every token is the top one of the reference's logits with the penalties applied by hand."""
    prompt = reference.chat("Repeat the word sea many times.")
    spec = replace(
        GREEDY, max_tokens=24, presence_penalty=0.7, frequency_penalty=0.4, repetition_penalty=1.2, ignore_eos=True
    )
    result = await engine.generate(prompt, spec)
    assert penalised_gap(reference, prompt, result.tokens, spec) <= TOLERANCE
    plain = await engine.generate(prompt, replace(GREEDY, max_tokens=24, ignore_eos=True))
    assert plain.tokens != result.tokens


def penalised_gap(reference: Reference, prompt: list[int], output: list[int], spec: SamplingSpec) -> float:
    """Worst distance of an output token from the top logit after penalties over prompt and output."""
    worst = 0.0
    for position, logits in enumerate(reference.logits(prompt, output)):
        before = output[:position]
        seen = torch.tensor(sorted({*prompt, *before}))
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / spec.repetition_penalty, values * spec.repetition_penalty)
        for token in set(before):
            logits[token] -= spec.presence_penalty + spec.frequency_penalty * before.count(token)
        worst = max(worst, float(logits.max() - logits[output[position]]))
    return worst


async def test_logprobs_are_the_reference_s(engine: Harness, reference: Reference) -> None:
    prompt = reference.chat("List three fruits.")
    result = await engine.generate(prompt, replace(GREEDY, max_tokens=8, logprobs=3))
    expected = torch.log_softmax(reference.logits(prompt, result.tokens), dim=-1)
    assert len(result.logprobs) == len(result.tokens)
    for token, position, row in zip(result.tokens, result.logprobs, expected, strict=True):
        assert position[0].token_id == token
        assert len(position) == 3
        assert [candidate.rank for candidate in position] == [1, 2, 3]
        for candidate in position:
            assert math.isclose(candidate.logprob, float(row[candidate.token_id]), abs_tol=0.05)
        assert position[0].text == reference.tokenizer.decode([token])


async def test_logit_bias_forces_a_token(engine: Harness, reference: Reference) -> None:
    token = reference.tokenizer.encode(" banana")[0]
    result = await engine.generate(reference.chat("Hi"), replace(GREEDY, max_tokens=3, logit_bias={token: 100.0}))
    assert result.tokens == [token] * 3


async def test_a_seed_repeats_and_another_differs(engine: Harness, reference: Reference) -> None:
    prompt = reference.chat("Tell me something surprising.")

    async def sample(seed: int) -> list[int]:
        spec = SamplingSpec(temperature=1.0, top_p=0.95, top_k=50, min_p=0.01, max_tokens=16, seed=seed)
        return (await engine.generate(prompt, spec)).tokens

    first, again, other = await sample(7), await sample(7), await sample(8)
    assert first == again
    assert first != other


async def test_json_schema_constrains_the_text(engine: Harness, reference: Reference) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    spec = replace(GREEDY, max_tokens=60, json_schema=json.dumps(schema))
    result = await engine.generate(reference.chat("Describe a person as JSON."), spec)
    assert result.finish_reason == "stop"
    person = json.loads(result.text)
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)


async def test_json_object_begins_an_object(engine: Harness, reference: Reference) -> None:
    spec = replace(GREEDY, max_tokens=12, json_object=True)
    result = await engine.generate(reference.chat("Describe a person."), spec)
    assert result.text.lstrip().startswith("{")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"token_ids": tuple(range(5, 1205)), "prompt_tokens": 1200}, "1024"),
        ({"sampling": SamplingSpec(temperature=-1.0)}, "temperature"),
        ({"sampling": SamplingSpec(top_p=1.5)}, "top_p"),
        ({"sampling": SamplingSpec(json_schema="{not json", max_tokens=4)}, ""),
        ({"token_ids": (5, 6, 7), "prompt_tokens": 0}, "prompt_tokens"),
        ({"token_ids": (5, 6, 7), "prompt_tokens": 2, "sampling": SamplingSpec(max_tokens=1)}, "max_tokens"),
        ({"token_ids": (5, 10**6), "prompt_tokens": 2}, "vocab"),
        ({"tpot_s": math.nan}, "tpot_s"),
    ],
)
async def test_what_cannot_run_is_rejected(engine: Harness, fields: dict[str, object], says: str) -> None:
    with pytest.raises(RequestRejected) as caught:
        await engine.engine.submit(make_request([5, 6, 7], **fields))
    assert caught.value.code == "INVALID_ARGUMENT"
    assert says in caught.value.reason


async def test_a_duplicate_is_rejected_and_the_first_goes_on(engine: Harness) -> None:
    request = make_request([5, 6, 7, 8])
    engine.results[request.request_id] = Result()
    await engine.engine.submit(request)
    with pytest.raises(RequestRejected) as caught:
        await engine.engine.submit(request)
    assert caught.value.code == "ALREADY_EXISTS"
    assert (await engine.result(request.request_id)).finish_reason
