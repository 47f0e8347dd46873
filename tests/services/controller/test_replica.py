"""One replica against a worker that does only what the test says: what a well-behaved worker never shows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from functools import partial

import grpc
import pytest

from protos.slos.v1 import common_pb2, worker_pb2
from scheduling.types import Admission
from services.common.metrics import CollectorRegistry
from services.controller.learned_margin import LearnedMargin
from services.controller.link import LinkTimes
from services.controller.metrics import Metrics
from services.controller.relay import Relay
from services.controller.replica import Replica
from services.controller.replica_events import ReplicaState
from services.controller.request import LiveRequest
from tests.services.controller.making import make_request
from tests.services.controller.peer import Peer, info, listening

HELLO = partial(worker_pb2.Hello, proto_version=1, fencing_token=7, controller_id="test")
CHANNEL = partial(grpc.aio.insecure_channel, options=[("grpc.use_local_subchannel_pool", 1)])
FAST = LinkTimes(connect_s=2.0, ping_s=0.1, silence_s=0.6)


class Record:
    """Keeps what a replica tells."""

    def __init__(self) -> None:
        self.displacements: list[tuple[str, str]] = []
        self.rejections: list[str] = []
        self.prefilled_ids: list[str] = []
        self.lost_prefills: list[str] = []
        self.given_back: list[LiveRequest] = []
        self.relay = Relay(
            lambda _: 10, lambda _: None, lambda *_: None, self.given_back.append, Metrics(CollectorRegistry())
        )

    def stepped(self, replica: Replica, step: worker_pb2.Step, ended_s: float) -> None:
        self.relay.stepped(replica, step, ended_s)

    def rejected(self, replica: Replica, request: LiveRequest, rejected: worker_pb2.Rejected) -> None:
        self.rejections.append(rejected.reason)

    def displaced(self, replica: Replica, requests: Collection[LiveRequest], reason: str) -> None:
        self.displacements += [(request.wire_id, reason) for request in requests]

    def prefilled(self, replica: Replica, request: LiveRequest, update: worker_pb2.RequestStep, ended_s: float) -> None:
        self.prefilled_ids.append(update.request_id)

    def prefill_lost(self, replica: Replica, request: LiveRequest, reason: str) -> None:
        self.lost_prefills.append(reason)

    def changed(self, replica: Replica) -> None:
        pass


def check(worker: worker_pb2.WorkerInfo) -> str:
    return "" if worker.tokenizer_hash == "hash" else "it has another tokenizer"


@contextlib.asynccontextmanager
async def attached(peer: Peer, record: Record, margin: LearnedMargin | None = None) -> AsyncIterator[Replica]:
    async with listening(peer) as address:
        replica = Replica("peer", address, info(), record, HELLO, check, CHANNEL, FAST, margin)
        replica.start()
        try:
            yield replica
        finally:
            await replica.close()


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - replicas tell nobody of every change
            await asyncio.sleep(0.01)


def step(number: int, *requests: worker_pb2.RequestStep, free_blocks: int = 90) -> worker_pb2.Event:
    return worker_pb2.Event(
        number=number, step=worker_pb2.Step(duration_us=10_000, requests=requests, free_blocks=free_blocks)
    )


def submit(replica: Replica, request_id: str = "r") -> LiveRequest:
    request = make_request(request_id)
    request.admission = Admission.STANDARD
    replica.placed.submit(request, request.first_due_s)
    return request


async def test_hello_and_submission_carry_what_the_worker_needs() -> None:
    peer = Peer()
    async with attached(peer, Record()) as replica:
        await until(lambda: replica.usable)
        assert (peer.hellos[0].fencing_token, peer.hellos[0].last_event) == (7, 0)
        submit(replica)
        command = await peer.hear(lambda c: c.WhichOneof("command") == "submit")
        assert list(command.submit.token_ids) == [1, 2, 3]
        assert command.submit.prompt_tokens == 3
        assert 0 < command.submit.ttft_remaining_us <= 1_000_000
        assert not command.submit.HasField("next_token_remaining_us")
        await until(lambda: replica.link.rtt_s > 0)


@pytest.mark.parametrize(("context", "back"), [(0, True), (64, False)])
async def test_a_hopeful_request_that_is_given_up_before_it_began_comes_back(context: int, back: bool) -> None:
    peer, record = Peer(), Record()
    async with attached(peer, record) as replica:
        await until(lambda: replica.usable)
        request = make_request("r")
        request.hopeful = True
        replica.placed.submit(request, request.first_due_s)
        command = await peer.hear(lambda c: c.WhichOneof("command") == "submit")
        assert command.submit.hopeful
        assert command.submit.admission == common_pb2.ADMISSION_BEST_EFFORT
        assert replica.mirror is not None
        slot = replica.mirror.table.slot("r")
        assert replica.mirror.table.hopeful[slot]
        update = worker_pb2.RequestStep(
            request_id="r", prefill_remaining=3, context_tokens=context, kv_blocks=context // 16, relegated=True
        )
        peer.send(step(1, update))
        await until(lambda: not request.hopeful)
        assert not replica.mirror.table.hopeful[slot]
        assert record.given_back == ([request] if back else [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"proto_version": 2}, "version 2 of the worker API"),
        ({"tokenizer_hash": "other"}, "another tokenizer"),
        ({"time_model_json": "{}"}, "time model"),
    ],
)
async def test_a_worker_that_does_not_fit_is_refused_by_name(changes: dict[str, object], reason: str) -> None:
    peer = Peer()
    peer.welcome.info.CopyFrom(info(**changes))
    async with attached(peer, Record()) as replica:
        await until(lambda: replica.state is ReplicaState.REFUSED)
        assert reason in replica.problem
        assert not replica.usable


async def test_a_worker_that_refuses_the_controller_is_shown_as_refused() -> None:
    peer = Peer()
    peer.refuse = "a newer controller has attached"
    async with attached(peer, Record()) as replica:
        await until(lambda: replica.state is ReplicaState.REFUSED)
        assert "newer controller" in replica.problem


async def test_after_a_break_the_stream_goes_on_where_it_was() -> None:
    peer, record = Peer(), Record()
    async with attached(peer, record) as replica:
        await until(lambda: replica.usable)
        request = submit(replica)
        await peer.hear(lambda c: c.WhichOneof("command") == "submit")
        peer.send(step(1, worker_pb2.RequestStep(request_id="r", token_ids=[5], text="a", context_tokens=3)))
        await until(lambda: request.output == [5])
        peer.welcome.request_ids.append("r")
        peer.hang_up()
        await until(lambda: len(peer.hellos) == 2)
        assert peer.hellos[1].last_event == 1
        # A worker may repeat what was seen: it must not count twice.
        peer.send(step(1, worker_pb2.RequestStep(request_id="r", token_ids=[5], text="a", context_tokens=3)))
        peer.send(step(2, worker_pb2.RequestStep(request_id="r", token_ids=[6], text="b", context_tokens=4)))
        await until(lambda: request.output == [5, 6])
        assert not record.displacements


async def test_a_submission_that_was_lost_with_the_stream_goes_elsewhere() -> None:
    peer, record = Peer(), Record()
    async with attached(peer, record) as replica:
        await until(lambda: replica.usable)
        submit(replica)
        await peer.hear(lambda c: c.WhichOneof("command") == "submit")
        peer.hang_up()  # and the next welcome names no request
        await until(lambda: record.displacements)
        assert record.displacements[0][0] == "r"
        assert not replica.placed.requests
        assert mirror_is_empty(replica)


async def test_lost_events_displace_every_request_and_take_it_back() -> None:
    peer, record = Peer(), Record()
    async with attached(peer, record) as replica:
        await until(lambda: replica.usable)
        submit(replica)
        await peer.hear(lambda c: c.WhichOneof("command") == "submit")
        peer.welcome.oldest_event = 5
        peer.welcome.request_ids.append("r")
        peer.hang_up()
        await until(lambda: record.displacements)
        assert "events were lost" in record.displacements[0][1]
        await peer.hear(lambda c: c.WhichOneof("command") == "cancel" and c.cancel.request_id == "r")


async def test_a_restarted_worker_has_nothing() -> None:
    peer, record = Peer(), Record()
    async with attached(peer, record) as replica:
        await until(lambda: replica.usable)
        peer.send(step(1))
        await until(lambda: replica.last_event == 1)
        submit(replica)
        peer.welcome.incarnation = "two"
        peer.hang_up()
        await until(lambda: record.displacements)
        assert "restarted" in record.displacements[0][1]
        assert replica.last_event == 0
        assert mirror_is_empty(replica)


async def test_requests_of_nobody_are_cancelled() -> None:
    peer = Peer()
    peer.welcome.request_ids.append("of an earlier controller")
    async with attached(peer, Record()) as replica:
        await peer.hear(lambda c: c.cancel.request_id == "of an earlier controller")
        finished = worker_pb2.RequestStep(
            request_id="of an earlier controller", finish_reason=common_pb2.FINISH_REASON_CANCELLED
        )
        assert replica.placed.leaving
        peer.send(step(1, finished))
        await until(lambda: not replica.placed.leaving)


async def test_a_silent_worker_is_given_up() -> None:
    peer = Peer()
    async with attached(peer, Record()) as replica:
        await until(lambda: replica.usable)
        peer.silent = True
        await until(lambda: not replica.link.connected)
        await until(lambda: "silent" in replica.problem or len(peer.hellos) > 1)


async def test_a_rejected_request_leaves_nothing_behind() -> None:
    peer, record = Peer(), Record()
    async with attached(peer, record) as replica:
        await until(lambda: replica.usable)
        submit(replica)
        peer.send(worker_pb2.Event(number=1, rejected=worker_pb2.Rejected(request_id="r", code=3, reason="no such")))
        await until(lambda: record.rejections == ["no such"])
        assert not replica.placed.requests
        assert mirror_is_empty(replica)


def mirror_is_empty(replica: Replica) -> bool:
    return replica.mirror is not None and len(replica.mirror.table) == 0
