"""Two endpoints over a real Gloo group, and over TCP: contents, prefixes, fences, leases, refusals, storms."""

from __future__ import annotations

import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch

from engine.kv.config import Identity, KvConfig, KvExchangeError, TransferKey
from engine.kv.endpoint import KvEndpoint
from engine.kv.reports import Ended

LAYERS, BLOCKS = 4, 32
CONFIG = KvConfig(
    message_bytes=8192, checksum=True, heartbeat_s=0.1, lease_s=1.5, io_timeout_s=1.5, connect_timeout_s=5
)


def make_endpoint(seed: int, config: KvConfig = CONFIG, identity: Identity | None = None) -> KvEndpoint:
    generator = torch.Generator().manual_seed(seed)
    caches = [torch.randn((BLOCKS, 2, 16, 8), generator=generator).half() for _ in range(LAYERS)]
    endpoint = KvEndpoint(caches, BLOCKS, identity or Identity(f"worker-{seed}", "model"), config)
    endpoint.test_caches = caches  # type: ignore[attr-defined]
    return endpoint


@pytest.fixture(params=["gloo", "tcp"])
def config(request: pytest.FixtureRequest) -> KvConfig:
    return replace(CONFIG, backend=request.param)


@pytest.fixture
def pair(config: KvConfig) -> Iterator[tuple[KvEndpoint, KvEndpoint]]:
    producer, consumer = make_endpoint(1, config), make_endpoint(2, config)
    yield producer, consumer
    producer.close()
    consumer.close()


def collect(endpoint: KvEndpoint, keys: set[TransferKey], timeout_s: float = 15.0) -> Ended:
    total = Ended()
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        ended = endpoint.poll()
        total.sent += ended.sent
        total.received += ended.received
        total.send_failed.update(ended.send_failed)
        total.receive_failed.update(ended.receive_failed)
        done = {*total.sent, *total.received, *total.send_failed, *total.receive_failed}
        if keys <= done:
            return total
        time.sleep(0.005)
    raise AssertionError(f"{keys} did not end; got {total}")


def equal_blocks(producer: KvEndpoint, consumer: KvEndpoint, source: list[int], target: list[int]) -> bool:
    return all(
        torch.equal(a[source], b[target])
        for a, b in zip(producer.test_caches, consumer.test_caches, strict=True)  # type: ignore[attr-defined]
    )


def compute_all(producer: KvEndpoint, key: TransferKey, block_ids: list[int], chunk: int) -> None:
    total = len(block_ids)
    for end in range(chunk, total + chunk, chunk):
        end = min(end, total)
        producer.grow(key, block_ids[:end], total if end == total else None)
        for layer in range(LAYERS):
            producer.computed(key, layer, end)


@pytest.mark.parametrize("seed", range(8))
def test_blocks_arrive_whole_in_any_order_of_events(pair: tuple[KvEndpoint, KvEndpoint], seed: int) -> None:
    producer, consumer = pair
    chooser = random.Random(seed)
    for number in range(4):
        key = TransferKey(f"{seed}-{number}", 0)
        count = chooser.randint(1, 12)
        source, target = chooser.sample(range(BLOCKS), count), chooser.sample(range(BLOCKS), count)
        first = chooser.randrange(count)
        untouched = [layer[target[:first]].clone() for layer in consumer.test_caches]  # type: ignore[attr-defined]
        steps = [
            partial(producer.offer, key, consumer.address),
            partial(consumer.expect, key, target, first),
        ]
        chooser.shuffle(steps)
        for step in steps:
            step()
            if chooser.random() < 0.3:
                time.sleep(0.15)
        compute_all(producer, key, source, chooser.randint(1, 5))
        assert collect(consumer, {key}).received == [key]
        assert collect(producer, {key}).sent == [key]
        assert equal_blocks(producer, consumer, source[first:], target[first:])
        for before, layer in zip(untouched, consumer.test_caches, strict=True):  # type: ignore[attr-defined]
            assert torch.equal(before, layer[target[:first]])
    assert (producer.stats().outgoing, consumer.stats().incoming) == (0, 0)


def test_chunks_leave_before_the_prompt_is_whole(pair: tuple[KvEndpoint, KvEndpoint]) -> None:
    producer, consumer = pair
    key = TransferKey("chunks", 0)
    consumer.expect(key, [0, 1, 2, 3], 0)
    producer.offer(key, consumer.address)
    producer.grow(key, [4, 5], None)
    for layer in range(LAYERS):
        producer.computed(key, layer, 2)
    chunk_bytes = LAYERS * 2 * producer.layout.block_bytes
    deadline = time.monotonic() + 10
    while producer.stats().bytes_sent < chunk_bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert producer.stats().bytes_sent == chunk_bytes
    compute_all(producer, key, [4, 5, 6, 7], 4)
    assert collect(consumer, {key}).received == [key]
    assert equal_blocks(producer, consumer, [4, 5, 6, 7], [0, 1, 2, 3])


def test_a_small_transfer_ends_while_a_large_one_goes_on(pair: tuple[KvEndpoint, KvEndpoint]) -> None:
    producer, consumer = pair
    large, small = TransferKey("large", 0), TransferKey("small", 0)
    for key, blocks in ((large, list(range(20))), (small, [30])):
        consumer.expect(key, blocks, 0)
        producer.offer(key, consumer.address)
    producer.grow(large, list(range(20)), None)
    for layer in range(LAYERS):
        producer.computed(large, layer, 10)
    compute_all(producer, small, [31], 1)
    assert collect(consumer, {small}).received == [small]
    assert (producer.stats().outgoing, consumer.stats().incoming) == (1, 1)
    compute_all(producer, large, list(range(20)), 20)
    assert collect(consumer, {large}).received == [large]
    assert equal_blocks(producer, consumer, [*range(20), 31], [*range(20), 30])


def test_an_aborted_transfer_costs_the_others_on_its_pair_nothing(pair: tuple[KvEndpoint, KvEndpoint]) -> None:
    """Messages of it may have been announced already: their bytes must still come, and must not be used."""
    producer, consumer = pair
    for turn in range(20):
        cut, kept = TransferKey(f"cut-{turn}", 0), TransferKey(f"kept-{turn}", 0)
        for key, blocks in ((cut, list(range(16))), (kept, list(range(16, 32)))):
            consumer.expect(key, blocks, 0)
            producer.offer(key, consumer.address)
        compute_all(producer, cut, list(range(16)), 16)
        compute_all(producer, kept, list(range(16, 32)), 16)
        time.sleep(0.0005 * turn)
        producer.abort_sending(cut, "cancelled")
        ended = collect(consumer, {cut, kept})
        assert kept in ended.received
        assert cut in {*ended.received, *ended.receive_failed}
        assert equal_blocks(producer, consumer, list(range(16, 32)), list(range(16, 32)))
    assert (producer.stats().outgoing, consumer.stats().incoming) == (0, 0)


def test_the_smaller_message_size_of_a_pair_holds_for_both(config: KvConfig) -> None:
    producer, consumer = make_endpoint(1, replace(config, message_bytes=1 << 16)), make_endpoint(2, config)
    key = TransferKey("t", 0)
    consumer.expect(key, list(range(20)), 0)
    producer.offer(key, consumer.address)
    compute_all(producer, key, list(range(20)), 20)
    assert collect(consumer, {key}).received == [key]
    producer.close()
    consumer.close()


def test_waiting_for_an_end_is_cut_short_by_it(pair: tuple[KvEndpoint, KvEndpoint]) -> None:
    producer, consumer = pair
    key = TransferKey("t", 0)
    assert consumer.poll(0.01) == Ended()
    consumer.expect(key, [1], 0)
    producer.offer(key, consumer.address)
    compute_all(producer, key, [2], 1)
    began_s = time.monotonic()
    assert consumer.poll(60.0).received == [key]
    assert time.monotonic() - began_s < 50.0


def test_a_newer_generation_fences_off_the_older(pair: tuple[KvEndpoint, KvEndpoint]) -> None:
    producer, consumer = pair
    old, new = TransferKey("request", 0), TransferKey("request", 1)
    producer.offer(old, consumer.address)
    consumer.expect(old, [1, 2], 0)
    consumer.expect(new, [3, 4], 0)
    assert "newer attempt" in collect(consumer, {old}).receive_failed[old]
    frozen = [layer[[1, 2]].clone() for layer in consumer.test_caches]  # type: ignore[attr-defined]
    with pytest.raises(KvExchangeError, match="older"):
        consumer.expect(old, [1, 2], 0)
    compute_all(producer, old, [8, 9], 2)
    producer.offer(new, consumer.address)
    compute_all(producer, new, [10, 11], 1)
    assert collect(consumer, {new}).received == [new]
    assert old in collect(producer, {old, new}).send_failed
    assert equal_blocks(producer, consumer, [10, 11], [3, 4])
    assert all(
        torch.equal(a, b[[1, 2]])
        for a, b in zip(frozen, consumer.test_caches, strict=True)  # type: ignore[attr-defined]
    )


def test_abort_on_either_side_ends_both(pair: tuple[KvEndpoint, KvEndpoint]) -> None:
    producer, consumer = pair
    by_producer, by_consumer = TransferKey("p", 0), TransferKey("c", 0)
    for key in (by_producer, by_consumer):
        consumer.expect(key, [1], 0)
        producer.offer(key, consumer.address)
    time.sleep(0.3)
    producer.abort_sending(by_producer, "cancelled by client")
    consumer.abort_receiving(by_consumer, "no memory")
    failed = collect(consumer, {by_producer, by_consumer}).receive_failed
    assert "cancelled by client" in failed[by_producer]
    assert "no memory" in failed[by_consumer]
    failed = collect(producer, {by_producer, by_consumer}).send_failed
    assert "no memory" in failed[by_consumer]
    assert (producer.stats().outgoing, consumer.stats().incoming) == (0, 0)


def test_leases_free_what_nobody_asks_for(pair: tuple[KvEndpoint, KvEndpoint]) -> None:
    producer, consumer = pair
    unwanted, unserved = TransferKey("unwanted", 0), TransferKey("unserved", 0)
    producer.offer(unwanted, consumer.address)
    consumer.expect(unserved, [1], 0)
    assert "no word of it from the decode worker" in collect(producer, {unwanted}).send_failed[unwanted]
    assert "no word of it from the prefill worker" in collect(consumer, {unserved}).receive_failed[unserved]


def test_a_lease_lasts_while_the_other_end_holds_the_transfer(pair: tuple[KvEndpoint, KvEndpoint]) -> None:
    producer, consumer = pair
    key = TransferKey("slow", 0)
    producer.offer(key, consumer.address)
    consumer.expect(key, [1], 0)
    time.sleep(3 * CONFIG.lease_s)
    compute_all(producer, key, [2], 1)
    assert collect(consumer, {key}).received == [key]


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (Identity("odd", "other-model"), "serves model"),
        (Identity("odd", "model", tp_rank=0, tp_size=2), "tensor parallelism"),
    ],
)
def test_a_peer_that_does_not_fit_is_refused_by_name(
    pair: tuple[KvEndpoint, KvEndpoint], config: KvConfig, identity: Identity, reason: str
) -> None:
    _, consumer = pair
    odd = make_endpoint(3, config, identity)
    key = TransferKey("odd", 0)
    # Nothing waits for a lease: what is expected of it fails at once, before it was refused and afterwards.
    consumer.expect(key, [1], 0, lease_s=3600.0, peer="odd")
    odd.offer(key, consumer.address)
    assert reason in collect(odd, {key}).send_failed[key]
    assert reason in collect(consumer, {key}).receive_failed[key]
    with pytest.raises(KvExchangeError, match=reason):
        consumer.expect(TransferKey("odd-again", 0), [1], 0, peer="odd")
    odd.close()
    reborn = make_endpoint(3, config, Identity("odd", "model"))
    reborn.offer(key, consumer.address)
    deadline = time.monotonic() + 10
    while consumer.stats().pairs == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    taken = TransferKey("odd-at-last", 0)
    consumer.expect(taken, [1], 0, peer="odd")
    reborn.offer(taken, consumer.address)
    compute_all(reborn, taken, [2], 1)
    assert collect(consumer, {taken}).received == [taken]
    reborn.close()


def test_another_layout_is_refused(pair: tuple[KvEndpoint, KvEndpoint], config: KvConfig) -> None:
    _, consumer = pair
    caches = [torch.zeros((BLOCKS, 2, 16, 8)) for _ in range(LAYERS)]
    odd = KvEndpoint(caches, BLOCKS, Identity("odd", "model"), config)
    key = TransferKey("odd", 0)
    odd.offer(key, consumer.address)
    assert "layouts differ" in collect(odd, {key}).send_failed[key]
    odd.close()


def test_nonsense_on_the_port_harms_nobody(pair: tuple[KvEndpoint, KvEndpoint]) -> None:
    producer, consumer = pair
    host, port = consumer.address.rsplit(":", 1)
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x02{]", b"\x00\x00\x00\x04null", b""):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(noise)
    key = TransferKey("after", 0)
    consumer.expect(key, [1], 0)
    producer.offer(key, consumer.address)
    compute_all(producer, key, [2], 1)
    assert collect(consumer, {key}).received == [key]


def test_a_failure_to_accept_does_not_end_the_listening(pair: tuple[KvEndpoint, KvEndpoint]) -> None:
    """Without a free file descriptor nobody can be let in; with one again, somebody can."""
    producer, consumer = pair
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    host, port = consumer.address.rsplit(":", 1)
    with socket.socket() as caller:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            caller.connect((host, int(port)))
            time.sleep(3 * CONFIG.heartbeat_s)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    key = TransferKey("after", 0)
    consumer.expect(key, [1], 0)
    producer.offer(key, consumer.address)
    compute_all(producer, key, [2], 1)
    assert collect(consumer, {key}).received == [key]


def test_closing_leaves_no_thread(config: KvConfig) -> None:
    before = set(threading.enumerate())
    producer, consumer = make_endpoint(1, config), make_endpoint(2, config)
    key = TransferKey("t", 0)
    consumer.expect(key, [1], 0)
    producer.offer(key, consumer.address)
    compute_all(producer, key, [2], 1)
    collect(consumer, {key})
    producer.close()
    consumer.close()
    assert not [thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()]


def test_nobody_listening_fails_the_transfer_with_the_address(pair: tuple[KvEndpoint, KvEndpoint]) -> None:
    producer, consumer = pair
    consumer.close()
    key = TransferKey("nobody", 0)
    producer.offer(key, consumer.address)
    assert consumer.address in collect(producer, {key}).send_failed[key]


def test_a_cancel_storm_leaves_nothing(pair: tuple[KvEndpoint, KvEndpoint]) -> None:
    producer, consumer = pair
    chooser = random.Random(7)
    keys = [TransferKey(f"storm-{n}", 0) for n in range(200)]
    for key in keys:
        block = [chooser.randrange(BLOCKS)]
        consumer.expect(key, block, 0)
        producer.offer(key, consumer.address)
        if chooser.random() < 0.5:
            compute_all(producer, key, block, 1)
        if chooser.random() < 0.7:
            chooser.choice([producer.abort_sending, consumer.abort_receiving])(key, "storm")
        elif chooser.random() < 0.9:
            compute_all(producer, key, block, 1)
    for key in keys:
        producer.abort_sending(key, "end of storm")
        consumer.abort_receiving(key, "end of storm")
    collect(producer, set(keys))
    collect(consumer, set(keys))
    assert (producer.stats().outgoing, consumer.stats().incoming) == (0, 0)
    key = TransferKey("calm", 0)
    consumer.expect(key, [3], 0)
    producer.offer(key, consumer.address)
    compute_all(producer, key, [4], 1)
    assert collect(consumer, {key}).received == [key]
