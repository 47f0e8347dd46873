"""A core over peers that do only what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path

import grpc

from protos.slos.v1 import client_pb2, common_pb2, worker_pb2
from scheduling import registry
from services.common.embedded_redis import EmbeddedRedis
from services.common.metrics import CollectorRegistry
from services.common.store import ReplicaRecord, Store, StoreSettings
from services.controller.contract import GenerationCall
from services.controller.core import Core, CoreSettings
from services.controller.metrics import Metrics
from services.controller.tokenizer import ModelTokenizer
from services.controller.warmup import warm_up
from tests.services.controller.http.conftest import CHATML, write_folder
from tests.services.controller.peer import Peer, info, listening

LOOSE = common_pb2.SloSpec(slo_class="chatbot", ttft_ms=60_000.0, tpot_ms=5_000.0)


@contextlib.asynccontextmanager
async def core_over(
    redis_server: EmbeddedRedis, folder: Path, peers: Mapping[str, Peer], **facts: Mapping[str, object]
) -> AsyncIterator[Core]:
    """Run a core until every peer is attached, and on; its books must be in order at the end.

    facts: by the name of a peer, what its WorkerInfo says beside the usual.
    """
    model = ModelTokenizer("tiny", write_folder(folder / "model", CHATML))
    store = Store(StoreSettings(url=redis_server.url, prefix=uuid.uuid4().hex))
    policy = registry.get("slos")
    warm_up(policy)
    core = Core(
        "test",
        1,
        store,
        {"tiny": model},
        policy,
        Metrics(CollectorRegistry()),
        partial(grpc.aio.insecure_channel, options=[("grpc.use_local_subchannel_pool", 1)]),
        CoreSettings(),
        lambda: None,
    )
    async with contextlib.AsyncExitStack() as stack:
        for name, peer in peers.items():
            address = await stack.enter_async_context(listening(peer))
            peer.welcome.info.CopyFrom(info(name, tokenizer_hash=model.hash, **facts.get(name, {})))
            await store.replicas.register(ReplicaRecord(address, "one", peer.welcome.info), 60.0)
        await core.start()
        async with asyncio.timeout(10):
            while len(core.replicas.usable("tiny")) < len(peers):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield core
        assert core.problems() == []
        await core.close()
    await store.close()


def ask(
    core: Core, request_id: str = "r", slo: common_pb2.SloSpec = LOOSE
) -> asyncio.Task[list[client_pb2.GenerateResponse]]:
    """Start a request of three tokens at most; the task gives its messages."""
    call = GenerationCall(
        model="tiny",
        token_ids=tuple(range(40)),
        sampling=common_pb2.Sampling(temperature=0.0, max_tokens=3),
        slo=slo,
        received_s=time.monotonic(),
        request_id=request_id,
    )

    async def read() -> list[client_pb2.GenerateResponse]:
        return [message async for message in core.generate(call)]

    return asyncio.create_task(read())


def submitted(name: str) -> Callable[[worker_pb2.Command], bool]:
    """Recognize the submission of this name."""
    return lambda command: command.submit.request_id == name


def cancelled(name: str) -> Callable[[worker_pb2.Command], bool]:
    """Recognize the cancel of this name."""
    return lambda command: command.cancel.request_id == name


def step(number: int, name: str, tokens: list[int], finish: int = 0, **fields: object) -> worker_pb2.Event:
    """Make the event of a step that did this to one request."""
    update = worker_pb2.RequestStep(request_id=name, token_ids=tokens, finish_reason=finish, **fields)
    return worker_pb2.Event(
        number=number, step=worker_pb2.Step(duration_us=20_000, requests=[update], free_blocks=100, batch_tokens=1)
    )
