"""Clients of the gRPC API for tests: many at once, each keeping everything it was told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc

from protos.slos.v1 import client_pb2, client_pb2_grpc, common_pb2

MODEL = "tiny"
TIMEOUT_S = 60.0


@dataclass(slots=True)
class Answer:
    """What a client got: error is set when the call failed."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    promises: list[common_pb2.Promise] = field(default_factory=list)
    last: client_pb2.GenerateResponse | None = None
    error: grpc.aio.AioRpcError | None = None

    @property
    def finish(self) -> str:
        """Name of the finish reason; empty when the call failed."""
        if self.last is None:
            return ""
        return common_pb2.FinishReason.Name(self.last.finish_reason).removeprefix("FINISH_REASON_").lower()


def prompt_of(seed: int, shortest: int = 10, longest: int = 120) -> list[int]:
    """Token ids that belong to a seed."""
    draw = random.Random(seed)
    return [draw.randrange(200) for _ in range(draw.randint(shortest, longest))]


def generate_request(
    prompt: Sequence[int],
    *,
    request_id: str = "",
    max_tokens: int = 40,
    slo: common_pb2.SloSpec | None = None,
    sampling: common_pb2.Sampling | None = None,
    session_id: str = "",
) -> client_pb2.GenerateRequest:
    """A greedy request unless sampling says otherwise; it never ends before max_tokens."""
    sampling = sampling or common_pb2.Sampling(temperature=0.0, ignore_eos=True)
    if not sampling.HasField("max_tokens"):
        sampling.max_tokens = max_tokens
    return client_pb2.GenerateRequest(
        request_id=request_id,
        model=MODEL,
        prompt_tokens=client_pb2.TokenIds(ids=prompt),
        sampling=sampling,
        slo=slo or common_pb2.SloSpec(slo_class="chatbot"),
        session_id=session_id,
    )


async def ask(
    stub: client_pb2_grpc.ClientStub,
    request: client_pb2.GenerateRequest,
    on_message: Callable[[client_pb2.GenerateResponse], None] = lambda _: None,
) -> Answer:
    """Send one request and read its whole answer."""
    answer = Answer()
    try:
        async for message in stub.Generate(request, timeout=TIMEOUT_S):
            answer.token_ids.extend(message.token_ids)
            answer.text += message.text
            answer.reasoning += message.reasoning_text
            if message.HasField("promise"):
                answer.promises.append(message.promise)
            answer.last = message
            on_message(message)
    except grpc.aio.AioRpcError as error:
        answer.error = error
    return answer


async def ask_all(
    address: str,
    requests: Sequence[client_pb2.GenerateRequest],
    gap_s: float = 0.0,
    after: tuple[int, Callable[[], object]] | None = None,
) -> list[Answer]:
    """Send many requests, gap_s apart, and read all answers.

    after: (tokens, what to do in a thread once that many tokens have come in all).
    """
    tokens = 0
    due = asyncio.Event()

    def count(message: client_pb2.GenerateResponse) -> None:
        nonlocal tokens
        tokens += len(message.token_ids)
        if after is not None and tokens >= after[0]:
            due.set()

    async def disturb() -> None:
        if after is not None:
            await due.wait()
            await asyncio.to_thread(after[1])

    async with grpc.aio.insecure_channel(address) as channel:
        stub = client_pb2_grpc.ClientStub(channel)
        disturbance = asyncio.create_task(disturb())
        tasks = []
        for request in requests:
            tasks.append(asyncio.create_task(ask(stub, request, count)))
            if gap_s:
                await asyncio.sleep(gap_s)
        answers = await asyncio.gather(*tasks)
        due.set()
        await disturbance
        return answers


def run_all(
    address: str,
    requests: Sequence[client_pb2.GenerateRequest],
    gap_s: float = 0.0,
    after: tuple[int, Callable[[], object]] | None = None,
) -> list[Answer]:
    """As ask_all, for tests without an event loop."""
    return asyncio.run(ask_all(address, requests, gap_s, after))
