"""A producer that does not keep to the rules: the consumer fails its transfer, or the pair, and writes nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.kv import link as links
from engine.kv.config import PROTOCOL_VERSION, TransferKey
from engine.kv.control import dial
from engine.kv.endpoint import KvEndpoint
from engine.kv.layout import checksum
from engine.kv.socket_link import SocketLink, enter
from tests.engine.kv.test_exchange import BLOCKS, CONFIG, LAYERS, collect, make_endpoint

KEY = TransferKey("t", 0)
WHOLE = [0, LAYERS, 0, 1]
"""The only block of the transfer, in all layers."""


class Producer:
    """The producer's end of the wire, spoken by hand."""

    def __init__(self, consumer: KvEndpoint) -> None:
        """Connect and offer the transfer."""
        backend = consumer.config.backend
        self._layout = consumer.layout
        self.control = dial(consumer.address, 5.0, 5.0)
        hello = {"type": "hello", "protocol": PROTOCOL_VERSION, "worker": "odd", "model": "model", "tp_rank": 0}
        self.control.send({**hello, "tp_size": 1, "layout": consumer.layout.fingerprint(), "backend": backend})
        welcome = self.control.receive(5.0)
        assert welcome is not None
        self._link: links.TorchLink | SocketLink
        if backend == "tcp":
            self._link = enter(self.control.peer_host, welcome["port"], welcome["secret"], CONFIG)
        else:
            store = links.join_store(self.control.peer_host, welcome["port"], 5.0)
            self._link = links.make_link(store, links.PRODUCER, backend, self.control.local_host, CONFIG)
        self.tell("offer")
        self.hear("ready")

    def hear(self, kind: str) -> dict[str, Any]:
        """Wait for a message of this kind."""
        while (answer := self.control.receive(5.0)) is not None:
            if answer["type"] == kind:
                return answer
        raise AssertionError(f"the consumer did not say {kind}")

    def tell(self, kind: str, **fields: object) -> None:
        """Say something about the transfer."""
        self.control.send({"type": kind, "key": KEY.to_wire(), **fields})

    def send(self, blocks: int = LAYERS) -> int:
        """Send the bytes of so many layers' blocks; returns their checksum."""
        data = torch.ones(blocks * self._layout.block_elements, dtype=self._layout.dtype)
        if isinstance(self._link, SocketLink):
            self._link.send([memoryview(data.numpy()).cast("B")])
        else:
            self._link.send(data).wait()
        return checksum(data)


@pytest.fixture(params=["gloo", "tcp"])
def consumer(request: pytest.FixtureRequest) -> Iterator[KvEndpoint]:
    endpoint = make_endpoint(2, replace(CONFIG, backend=request.param))
    endpoint.expect(KEY, [5], 0)
    yield endpoint
    endpoint.close()


def test_an_honest_one_is_believed(consumer: KvEndpoint) -> None:
    producer = Producer(consumer)
    producer.tell("pieces", pieces=[WHOLE])
    producer.tell("done", crc=producer.send())
    assert collect(consumer, {KEY}).received == [KEY]


def test_other_bytes_than_were_gathered_fail_the_transfer(consumer: KvEndpoint) -> None:
    producer = Producer(consumer)
    producer.tell("pieces", pieces=[WHOLE])
    producer.tell("done", crc=producer.send() ^ 1)
    assert "checksums differ" in collect(consumer, {KEY}).receive_failed[KEY]


def test_an_end_without_the_bytes_fails_the_transfer(consumer: KvEndpoint) -> None:
    producer = Producer(consumer)  # kept: a connection that is dropped would end the pair before its word is heard
    producer.tell("done", crc=0)
    assert f"{LAYERS} layer-blocks are missing" in collect(consumer, {KEY}).receive_failed[KEY]


@pytest.mark.parametrize("piece", [[0, LAYERS, 1, 2], [0, LAYERS + 1, 0, 1]])
def test_blocks_that_nobody_asked_for_are_not_written(consumer: KvEndpoint, piece: list[int]) -> None:
    before = [cache.clone() for cache in consumer.test_caches]  # type: ignore[attr-defined]
    producer = Producer(consumer)
    producer.tell("pieces", pieces=[piece])
    if piece[1] == LAYERS:
        producer.send()
    else:
        producer.send(LAYERS + 1)
    assert "outside of what was asked for" in collect(consumer, {KEY}).receive_failed[KEY]
    for old, new in zip(before, consumer.test_caches, strict=True):  # type: ignore[attr-defined]
        assert torch.equal(old, new)


@pytest.mark.parametrize(
    ("kind", "fields"), [("pieces", {"pieces": [[0, LAYERS, 0, BLOCKS * 99]]}), ("nonsense", {}), ("pieces", {})]
)
def test_nonsense_ends_the_pair_and_its_transfers(consumer: KvEndpoint, kind: str, fields: dict[str, object]) -> None:
    producer = Producer(consumer)
    producer.tell(kind, **fields)
    reason = collect(consumer, {KEY}).receive_failed[KEY]
    assert reason.startswith("pair with odd ended")
    assert "peer closed" not in reason
    assert consumer.stats().pairs == 0


def test_a_transfer_that_is_not_wanted_any_more_is_refused_again_when_it_is_heard_of(consumer: KvEndpoint) -> None:
    """The word of the first refusal may have crossed with a heartbeat; nothing of it may stay behind."""
    producer = Producer(consumer)
    consumer.abort_receiving(KEY, "cancelled")
    for _ in range(2):
        assert producer.hear("abort")["key"] == KEY.to_wire()
        producer.control.send({"type": "beat", "transfers": [KEY.to_wire()]})
    assert producer.hear("abort")["key"] == KEY.to_wire()
    (pair,) = consumer._inbound
    assert pair.offered() == []
