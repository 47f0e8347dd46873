"""Moving blocks without a copy: regions, the door, and the fence around what is being received."""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kv.config import Identity, KvConfig, KvExchangeError
from engine.kv.endpoint import KvEndpoint
from engine.kv.reports import Ended
from engine.kv.socket_link import Door, SocketLink, enter
from tests.engine.kv.test_dishonest import KEY, WHOLE, Producer
from tests.engine.kv.test_exchange import BLOCKS, CONFIG, LAYERS, collect, make_endpoint

TCP = replace(CONFIG, backend="tcp")


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=700),
    other=st.lists(st.integers(1, 900), min_size=1, max_size=9),
)
@settings(max_examples=60, deadline=None)
def test_regions_of_any_sizes_at_either_end_carry_the_same_bytes(sizes: list[int], other: list[int]) -> None:
    total = sum(sizes)
    data = random.Random(total).randbytes(total)
    ends = itertools.accumulate(sizes)
    source = [memoryview(data)[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    target = bytearray(total)
    bounds = [0, *(end for end in itertools.accumulate(other) if end < total), total]
    parts = [memoryview(target)[start:end] for start, end in itertools.pairwise(bounds)]
    near, far = socket.socketpair()
    sender, receiver = SocketLink(_plain(near), 5.0), SocketLink(_plain(far), 5.0)
    sending = threading.Thread(target=sender.send, args=(source,))
    sending.start()
    receiver.receive(parts)
    sending.join()
    assert target == data
    near.close()
    far.close()


class _Unix(socket.socket):
    """A socket pair has no TCP options to set."""

    def setsockopt(self, level: int, *rest: Any) -> None:
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *rest)


def _plain(sock: socket.socket) -> socket.socket:
    return _Unix(fileno=sock.detach())


def meet(door: Door) -> tuple[SocketLink, SocketLink]:
    """Both ends of the link of whoever knows the door's secret."""
    links: list[SocketLink] = []
    entering = threading.Thread(target=lambda: links.append(enter("127.0.0.1", door.port, door.secret, KvConfig())))
    entering.start()
    consumer = door.accept()
    entering.join()
    (producer,) = links
    return producer, consumer


def test_who_closes_or_falls_silent_fails_the_other() -> None:
    producer, consumer = meet(Door("127.0.0.1", KvConfig()))
    room = memoryview(bytearray(8))
    silent = SocketLink(consumer._socket, 0.2)
    with pytest.raises(KvExchangeError, match="did not move"):
        silent.receive([room])
    producer.close()
    with pytest.raises(KvExchangeError, match="peer has closed"):
        consumer.receive([room])


def test_the_door_lets_in_only_who_knows_the_secret() -> None:
    door = Door("127.0.0.1", KvConfig(connect_timeout_s=3.0))
    strangers = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(2)]
    strangers[0].sendall(b"x" * len(door.secret))
    strangers[1].close()
    producer, consumer = meet(door)
    producer.send([memoryview(b"hello")])
    room = bytearray(5)
    consumer.receive([memoryview(room)])
    assert bytes(room) == b"hello"
    strangers[0].close()


def test_nobody_at_the_door_is_an_error_in_time() -> None:
    config = replace(TCP, connect_timeout_s=0.3)
    began_s = time.monotonic()
    with pytest.raises(KvExchangeError, match="did not connect"):
        Door("127.0.0.1", config).accept()
    assert time.monotonic() - began_s < 3.0


def test_caches_that_are_not_contiguous_cannot_go_this_way() -> None:
    caches = [torch.zeros((2, BLOCKS, 3, 4, 6)).transpose(2, 3) for _ in range(LAYERS)]
    odd, consumer = KvEndpoint(caches, BLOCKS, Identity("odd", "model"), TCP), make_endpoint(2, TCP)
    odd.offer(KEY, consumer.address)
    assert "contiguous KV caches in host memory" in collect(odd, {KEY}).send_failed[KEY]
    odd.close()
    consumer.close()


def test_ends_that_move_kv_in_other_ways_are_refused() -> None:
    producer, consumer = make_endpoint(1, TCP), make_endpoint(2, replace(CONFIG, backend="gloo"))
    producer.offer(KEY, consumer.address)
    assert "set the same KV backend" in collect(producer, {KEY}).send_failed[KEY]
    producer.close()
    consumer.close()


@pytest.fixture
def consumer() -> Iterator[KvEndpoint]:
    endpoint = make_endpoint(2, TCP)
    endpoint.expect(KEY, [5], 0)
    yield endpoint
    endpoint.close()


def begin(consumer: KvEndpoint) -> Producer:
    """Let a producer send half of the transfer's only piece, and wait until it is being received."""
    producer = Producer(consumer)
    producer.tell("pieces", pieces=[WHOLE])
    producer.send(LAYERS // 2)
    transfer = consumer._incoming[KEY]
    deadline = time.monotonic() + 10
    while not transfer.landing and time.monotonic() < deadline:
        time.sleep(0.005)
    assert transfer.landing
    return producer


def send_on(producer: Producer) -> None:
    """Send until the closed connection is noticed."""
    for _ in range(100):
        producer.send()
        time.sleep(0.01)


def test_blocks_are_given_back_only_when_nothing_is_received_into_them(consumer: KvEndpoint) -> None:
    producer = begin(consumer)
    consumer.abort_receiving(KEY, "cancelled")
    assert consumer.poll(0.3) == Ended()
    assert consumer.stats().incoming == 1
    producer.send(LAYERS - LAYERS // 2)
    assert collect(consumer, {KEY}).receive_failed == {KEY: "cancelled"}
    assert consumer.stats().incoming == 0
    assert consumer.stats().pairs == 1


def test_of_a_producer_that_falls_silent_nothing_is_written_later(consumer: KvEndpoint) -> None:
    producer = begin(consumer)
    consumer.abort_receiving(KEY, "cancelled")
    assert collect(consumer, {KEY}, timeout_s=4 * CONFIG.io_timeout_s).receive_failed == {KEY: "cancelled"}
    for cache in consumer.test_caches:  # type: ignore[attr-defined]
        cache[5] = 7.0
    with pytest.raises(KvExchangeError):
        send_on(producer)
    assert all(bool((cache[5] == 7.0).all()) for cache in consumer.test_caches)  # type: ignore[attr-defined]


def test_the_death_of_a_pair_gives_the_blocks_back_at_once(consumer: KvEndpoint) -> None:
    producer = begin(consumer)
    began_s = time.monotonic()
    producer.control.close()
    assert "pair with odd ended" in collect(consumer, {KEY}).receive_failed[KEY]
    assert time.monotonic() - began_s < CONFIG.io_timeout_s
    assert consumer.stats().pairs == 0
