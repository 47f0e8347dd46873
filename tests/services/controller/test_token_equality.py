"""Tokens of the whole cluster (client API, controller, wire, worker, vLLM) against float32 transformers."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest

from protos.slos.v1 import client_pb2, client_pb2_grpc, common_pb2
from tests.cluster import Cluster
from tests.engine_vllm.reference import TOLERANCE, Reference

pytestmark = [pytest.mark.real_engine, pytest.mark.timeout(400)]

TOPICS = ("the sea", "a clock", "bread", "winter", "a bridge", "chess", "the moon", "tea", "a violin", "rust")
PROMPTS = [f"Write one sentence about {topic}." for topic in TOPICS] + [
    f"Here are some facts about {topic}. " + f"People have long cared about {topic}. " * (4 * number) + "Sum up."
    for number, topic in enumerate(TOPICS, start=1)
]
OUTPUT_TOKENS = 16
CLASSES = ("chatbot", "coding", "summarization", "tool")


@pytest.fixture(scope="module")
def reference(real_cluster: Cluster) -> Reference:
    from engine.vllm.model import ensure_model

    return Reference(ensure_model())


async def generate(stub: client_pb2_grpc.ClientStub, model: str, prompt: list[int], slo_class: str) -> list[int]:
    request = client_pb2.GenerateRequest(
        model=model,
        prompt_tokens=client_pb2.TokenIds(ids=prompt),
        sampling=common_pb2.Sampling(temperature=0.0, max_tokens=OUTPUT_TOKENS),
        slo=common_pb2.SloSpec(slo_class=slo_class),
    )
    tokens: list[int] = []
    finish = common_pb2.FINISH_REASON_UNSPECIFIED
    async for message in stub.Generate(request, timeout=300):
        tokens += message.token_ids
        finish = message.finish_reason
    assert finish in (common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH)
    return tokens


async def test_twenty_at_once_are_the_references_tokens(real_cluster: Cluster, reference: Reference) -> None:
    prompts = [reference.chat(text) for text in PROMPTS]
    async with grpc.aio.insecure_channel(real_cluster.grpc_address) as channel:
        stub = client_pb2_grpc.ClientStub(channel)
        outputs = await asyncio.gather(
            *(
                generate(stub, real_cluster.model, prompt, CLASSES[number % len(CLASSES)])
                for number, prompt in enumerate(prompts)
            )
        )
    gaps = [reference.gap(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]
    assert max(gaps) <= TOLERANCE
    assert sum(gap == 0 for gap in gaps) >= 0.8 * len(gaps)


async def test_ten_one_at_a_time_are_exactly_the_references(real_cluster: Cluster, reference: Reference) -> None:
    async with grpc.aio.insecure_channel(real_cluster.grpc_address) as channel:
        stub = client_pb2_grpc.ClientStub(channel)
        for text in PROMPTS[:10]:
            prompt = reference.chat(text)
            output = await generate(stub, real_cluster.model, prompt, "chatbot")
            assert output, text
            assert reference.gap(prompt, output) == 0.0, text
