"""Workers of a pair die, hang, refuse and fill up under load; every request keeps its tokens, and no block leaks."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable

import grpc
import pytest

from protos.slos.v1 import admin_pb2, client_pb2, client_pb2_grpc
from tests.services.controller.load import ask, generate_request, prompt_of, run_all
from tests.services.disaggregated.conftest import Pairs, Undisturbed, load, tokens

pytestmark = pytest.mark.timeout(300)

COUNT = 24


@pytest.fixture
def pairs(shared: Pairs) -> Pairs:
    """Two workers of each role, whatever the test before has done to them."""
    shared.restore("prefill-0", "prefill-1", "decode-0", "decode-1")
    return shared


def disturb(pairs: Pairs, expected: list[list[int]], prefix: str, what: Callable[[], object], at: int = 60) -> None:
    """Serve a load, do something to the cluster while it runs, and check every token."""
    answers = run_all(pairs.cluster.grpc_address, load(COUNT, prefix), gap_s=0.02, after=(at, what))
    assert tokens(answers) == expected
    pairs.settled()


@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
def test_kill_of_either_side_under_load_and_its_return(pairs: Pairs, undisturbed: Undisturbed, victim: str) -> None:
    """Some transfers are under way, some requests decode; the same id comes back as a new process meanwhile."""

    def kill_and_start() -> None:
        pairs.cluster.kill(victim)
        pairs.start(victim)

    disturb(pairs, undisturbed(COUNT), f"kill-{victim}", kill_and_start)
    pairs.restore("prefill-0", "prefill-1", "decode-0", "decode-1")
    answers = run_all(pairs.cluster.grpc_address, load(8, f"again-{victim}"))
    assert tokens(answers) == undisturbed(COUNT)[:8]
    pairs.settled()


def test_loss_of_every_prefill_worker_leaves_the_decode_workers_serving(pairs: Pairs, undisturbed: Undisturbed) -> None:
    def disaster() -> None:
        pairs.cluster.kill("prefill-0")
        pairs.cluster.kill("prefill-1")

    disturb(pairs, undisturbed(COUNT), "no-prefill", disaster, at=20)


@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
def test_worker_that_hangs_instead_of_dying(pairs: Pairs, undisturbed: Undisturbed, victim: str) -> None:
    """A stall in place of a cut: the process lives, its sockets are open, and nothing moves for three seconds."""

    def stall() -> None:
        process = pairs.cluster.process(victim)
        process.send_signal(signal.SIGSTOP)
        time.sleep(3.0)
        process.send_signal(signal.SIGCONT)

    disturb(pairs, undisturbed(COUNT), f"stall-{victim}", stall)


def test_decode_side_that_refuses_after_the_prefill(pairs: Pairs, undisturbed: Undisturbed) -> None:
    """A draining worker takes nothing: what was on its way there finds another place."""

    def refuse() -> None:
        pairs.cluster.admin.DrainReplica(admin_pb2.ReplicaRequest(replica="decode-0"), timeout=5.0)

    disturb(pairs, undisturbed(COUNT), "refuse", refuse, at=20)
    pairs.cluster.admin.UndrainReplica(admin_pb2.ReplicaRequest(replica="decode-0"), timeout=5.0)


def test_cancel_storm(pairs: Pairs, undisturbed: Undisturbed) -> None:
    """200 clients hang up at any moment of prefill, transfer and decoding; those who stay get their tokens."""
    draw = random.Random(7)

    async def hang_up(stub: client_pb2_grpc.ClientStub, request: client_pb2.GenerateRequest, after_s: float) -> None:
        try:
            async with asyncio.timeout(after_s):
                await ask(stub, request)
        except TimeoutError:
            pass

    async def storm() -> list[list[int]]:
        async with grpc.aio.insecure_channel(pairs.cluster.grpc_address) as channel:
            stub = client_pb2_grpc.ClientStub(channel)
            staying = [asyncio.create_task(ask(stub, request)) for request in load(8, "stays")]
            leaving = []
            for number in range(200):
                request = generate_request(prompt_of(1000 + number, 2, 300), request_id=f"leaves-{number}")
                leaving.append(asyncio.create_task(hang_up(stub, request, draw.uniform(0.0, 0.3))))
                await asyncio.sleep(0.005)
            await asyncio.gather(*leaving)
            return tokens(await asyncio.gather(*staying))

    assert asyncio.run(storm()) == undisturbed(COUNT)[:8]
    pairs.settled()


def test_full_decode_side(shared: Pairs, undisturbed: Undisturbed) -> None:
    """KV memory for three requests or so on the decode worker: the others wait or are decoded elsewhere."""
    expected = undisturbed(COUNT)
    for name in ("decode-0", "decode-1"):
        shared.cluster.end(name)
    shared.start("decode-2", "--kv-blocks", "64")
    try:
        shared.cluster.until(
            lambda: "decode-2" in (known := shared.cluster.replicas()) and known["decode-2"].state == "ready",
            "the small decode worker is ready",
        )
        assert tokens(run_all(shared.cluster.grpc_address, load(COUNT, "full"), gap_s=0.01)) == expected
        shared.settled()
    finally:
        shared.cluster.end("decode-2")
