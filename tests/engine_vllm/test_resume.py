"""A request that goes on after a failover behaves as if it had never moved."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.ops.penalties import apply_all_penalties

from engine.protocol import SamplingSpec
from engine.vllm.resume import PENALTIES_ARG, PriorOutputPenalties
from tests.engine_vllm.harness import GREEDY, Harness, Result
from tests.engine_vllm.reference import Reference

on_engine = pytest.mark.asyncio(loop_scope="package")
pytestmark = pytest.mark.real_engine


SEA = "Write a short poem about the sea."


async def halves(engine: Harness, prompt: list[int], spec: SamplingSpec, split: int) -> tuple[Result, Result, str]:
    """Run a request whole, and its part after `split` tokens again; also the text that those tokens had given."""
    whole = await engine.generate(prompt, spec)
    assert len(whole.tokens) > split, "the split lies behind the end"
    tokens, text = 0, ""
    for update in whole.updates:
        if tokens + len(update.token_ids) <= split:
            text += update.text
        tokens += len(update.token_ids)
    rest = await engine.generate(prompt + whole.tokens[:split], spec, prompt_tokens=len(prompt), text_chars=len(text))
    return whole, rest, text


@on_engine
@pytest.mark.parametrize("split", [1, 5, 11])
async def test_greedy_output_continues_exactly(engine: Harness, reference: Reference, split: int) -> None:
    spec = replace(GREEDY, max_tokens=20)
    whole, rest, text = await halves(engine, reference.chat(SEA), spec, split)
    assert whole.tokens[:split] + rest.tokens == whole.tokens
    assert text + rest.text == whole.text
    assert rest.finish_reason == whole.finish_reason == "length"


@on_engine
async def test_penalties_count_the_prior_output(engine: Harness, reference: Reference) -> None:
    prompt = [
        *reference.chat("Repeat the word sea many times."),
        *reference.tokenizer.encode("sea sea sea sea sea sea"),
    ]
    never_end = {reference.tokenizer.eos_token_id: -100.0}
    spec = replace(GREEDY, max_tokens=24, presence_penalty=1.2, frequency_penalty=0.8, logit_bias=never_end)
    for spec_now in (spec, replace(spec, repetition_penalty=1.1)):
        whole, rest, _ = await halves(engine, prompt, spec_now, 12)
        assert whole.tokens[:12] + rest.tokens == whole.tokens
    whole, rest, _ = await halves(engine, prompt, spec, 12)
    forgetful = await engine.generate(prompt + whole.tokens[:12], replace(spec, max_tokens=12))
    assert forgetful.tokens != rest.tokens, "the penalties make no difference here, so the test proves nothing"


@on_engine
async def test_min_tokens_counts_the_prior_output(engine: Harness, reference: Reference) -> None:
    spec = replace(GREEDY, max_tokens=30, min_tokens=14)
    whole, rest, _ = await halves(engine, reference.chat("What is the capital of France?"), spec, 10)
    assert whole.tokens[:10] + rest.tokens == whole.tokens
    assert reference.tokenizer.eos_token_id not in rest.tokens[:3]


@on_engine
async def test_stop_string_across_the_failover(engine: Harness, reference: Reference) -> None:
    """The stop string begins in text of the first engine; what that held back is given out, or cut off."""
    prompt = reference.chat(SEA)
    plain = await engine.generate(prompt, replace(GREEDY, max_tokens=20))
    ends = [len(reference.tokenizer.decode(plain.tokens[:n])) for n in range(len(plain.tokens) + 1)]
    for split in (6, 9):
        stop = plain.text[ends[split] - 4 : ends[split] + 3]
        spec = replace(GREEDY, max_tokens=20, stop=(stop, "x" * 9))
        first_text = plain.text[: max(ends[split] - 8, 0)]
        rest = await engine.generate(
            prompt + plain.tokens[:split], spec, prompt_tokens=len(prompt), text_chars=len(first_text)
        )
        assert rest.finish_reason == "stop"
        assert first_text + rest.text == plain.text[: plain.text.index(stop)]


@on_engine
async def test_json_goes_on_where_it_was(engine: Harness, reference: Reference) -> None:
    schema = {"type": "array", "items": {"type": "integer", "maximum": 999}, "minItems": 4, "maxItems": 6}
    spec = replace(GREEDY, max_tokens=60, json_schema=json.dumps(schema))
    whole, rest, text = await halves(engine, reference.chat("Give me numbers as JSON."), spec, 4)
    assert whole.tokens[:4] + rest.tokens == whole.tokens
    assert isinstance(json.loads(text + rest.text), list)


@on_engine
async def test_sampled_output_goes_on_with_another_seed(engine: Harness, reference: Reference) -> None:
    spec = SamplingSpec(temperature=1.0, seed=5, max_tokens=16, ignore_eos=True)
    whole, rest, _ = await halves(engine, reference.chat("Tell me something surprising."), spec, 6)
    assert len(rest.tokens) == len(whole.tokens) - 6
    assert rest.tokens != whole.tokens[:10], "the first draws were repeated"


@pytest.mark.parametrize(("presence", "frequency", "repetition"), [(0.5, 0.0, 1.0), (0.0, 0.7, 1.3), (-0.4, 0.2, 0.8)])
def test_penalties_are_vllm_s_own(presence: float, frequency: float, repetition: float) -> None:
    """On random logits, prior + new output in our processor equals plain output in vLLM's function."""
    generator = torch.Generator().manual_seed(3)
    vocabulary, prompt = 50, [3, 4, 4, 9]
    prior, new = [4, 7, 7, 11], [7, 12, 9]
    logits = torch.randn(1, vocabulary, generator=generator)
    expected = apply_all_penalties(
        logits.clone(),
        torch.tensor([prompt]),
        torch.tensor([presence]),
        torch.tensor([frequency]),
        torch.tensor([repetition]),
        [prior + new],
    )
    settings = {"prior": prior, "presence": presence, "frequency": frequency, "repetition": repetition}
    processor = PriorOutputPenalties.__new__(PriorOutputPenalties)
    penalise = processor.new_req_logits_processor(SamplingParams(extra_args={PENALTIES_ARG: settings}))
    assert penalise is not None
    # vLLM calls the resumed request's prior output prompt.
    torch.testing.assert_close(penalise(prompt + prior, new, logits[0].clone()), expected[0])
