"""Emulated engines in processes of their own die, hang, refuse and fill up while KV is on its way, twenty times each.

The engines that live go through all rounds of a test, so that a leak in one round shows in the next.
"""

from __future__ import annotations

import itertools
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from engine.emulated import EmulatedConfig
from engine.kv.config import KvConfig
from engine.protocol import EngineRequest, KvTransferSpec, SamplingSpec
from scheduling.time_model import TimeModel
from tests.engine.emulated_peer import Peer
from tests.engine.test_emulated_core import alone

pytestmark = pytest.mark.timeout(300)
ROUNDS = 20
KV = KvConfig(
    heartbeat_s=0.05, lease_s=0.6, io_timeout_s=0.6, connect_timeout_s=2.0, message_bytes=65536, checksum=True
)
CONFIG = EmulatedConfig(
    time_model=TimeModel(((0.001, 2e-5, 0.0, 0.0, 0.0, 0.0),), source="assumed: for tests"),
    kv_blocks=400,
    block_size=4,
    max_model_len=300,
    max_batch_tokens=48,
    output_mean=12.0,
    kv_exchange=KV,
    kv_block_bytes=65536,
)
_names = itertools.count()


class Fleet:
    """Engines by name, made when first asked for; a dead one comes back at its old address."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}
        self._ports: dict[str, int] = {}

    def get(self, name: str, **changes: object) -> Peer:
        peer = self._peers.get(name)
        if peer is None or not peer.process.is_alive():
            if name not in self._ports:
                with socket.create_server(("127.0.0.1", 0)) as probe:
                    self._ports[name] = probe.getsockname()[1]
            exchange = replace(KV, port=self._ports[name])
            peer = Peer(replace(CONFIG, worker_id=name, kv_exchange=exchange, **changes))  # type: ignore[arg-type]
            self._peers[name] = peer
        return peer

    def close(self) -> None:
        for peer in self._peers.values():
            peer.kill()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    running = Fleet()
    yield running
    running.close()


def make(draw: random.Random, longest: int = 90) -> EngineRequest:
    prompt = tuple(draw.randint(8, 99) for _ in range(draw.randint(1, longest)))
    now_s = time.monotonic()
    return EngineRequest(
        request_id=f"r{next(_names)}",
        token_ids=prompt,
        prompt_tokens=len(prompt),
        sampling=SamplingSpec(temperature=0.0, ignore_eos=True, max_tokens=12),
        standard=draw.random() < 0.8,
        arrival_s=now_s,
        first_token_due_s=now_s + 10,
        tpot_s=1.0,
    )


def leg(request: EngineRequest) -> str:
    return request.request_id + "~p"


def hand_over(request: EngineRequest, prefill: Peer, decode: Peer) -> None:
    """Submit both halves, as a controller does."""
    spec = KvTransferSpec(f"t{next(_names)}", 1, True, "d", decode.address, KV.lease_s)
    prefill.submit(
        replace(
            request,
            request_id=leg(request),
            prompt_tokens=len(request.token_ids),
            sampling=SamplingSpec(temperature=0.0, max_tokens=1, ignore_eos=True),
            kv_transfer=spec,
        )
    )
    decode.submit(replace(request, kv_transfer=replace(spec, producer=False, peer_address=prefill.address)))


def expected(request: EngineRequest) -> list[int]:
    said = alone(replace(request, kv_transfer=None), replace(CONFIG, kv_exchange=None))
    return [token for update in said for token in update.token_ids]


def right(decode: Peer, requests: list[EngineRequest]) -> None:
    """Wait for requests and compare their tokens with the undisturbed run."""
    decode.finished(*(request.request_id for request in requests))
    for request in requests:
        assert decode.tokens(request.request_id) == expected(request)


def test_prefill_engine_is_killed_while_kv_is_on_its_way_and_comes_back(fleet: Fleet) -> None:
    decode, recomputed = fleet.get("d"), 0
    for number in range(ROUNDS):
        draw = random.Random(number)
        prefill = fleet.get("p")
        requests = [make(draw) for _ in range(6)]
        for request in requests:
            hand_over(request, prefill, decode)
        time.sleep(draw.uniform(0.0, 0.05))
        prefill.kill()
        right(decode, requests)
        decode.all_free()
        recomputed += sum(decode.recomputed(request.request_id) for request in requests)
    assert recomputed  # some were hit in the middle


def test_decode_engine_is_killed_mid_transfer_or_mid_decode_and_comes_back(fleet: Fleet) -> None:
    """Its requests go on from their tokens on the engine that takes its place, with KV sent once more."""
    prefill = fleet.get("p")
    for number in range(ROUNDS):
        draw = random.Random(number)
        decode = fleet.get("d")
        requests = [make(draw) for _ in range(6)]
        for request in requests:
            hand_over(request, prefill, decode)
        time.sleep(draw.uniform(0.0, 0.05))
        decode.kill()
        prefill.finished(*(leg(request) for request in requests))
        prefill.all_free()
        successor = fleet.get("d")
        again = []
        for request in requests:
            said = decode.tokens(request.request_id)
            if decode.finish(request.request_id):
                assert said == expected(request)
                continue
            name = f"{request.request_id}-again"
            again.append((request, said, replace(request, request_id=name, token_ids=(*request.token_ids, *said))))
        for _, _, rest in again:
            hand_over(rest, prefill, successor)
        successor.finished(*(rest.request_id for _, _, rest in again))
        for request, said, rest in again:
            assert said + successor.tokens(rest.request_id) == expected(request)
        successor.all_free()
        prefill.finished(*(leg(rest) for _, _, rest in again))
        prefill.all_free()


@pytest.mark.parametrize("side", ["p", "d"])
def test_stall_in_place_of_a_cut(fleet: Fleet, side: str) -> None:
    """Sockets stay open and nothing moves for longer than every timeout; then it goes on as if nothing had been."""
    prefill, decode = fleet.get("p"), fleet.get("d")
    for number in range(ROUNDS):
        draw = random.Random(number)
        requests = [make(draw) for _ in range(6)]
        for request in requests:
            hand_over(request, prefill, decode)
        time.sleep(draw.uniform(0.0, 0.03))
        fleet.get(side).pause(0.8)
        right(decode, requests)
        prefill.finished(*(leg(request) for request in requests))
        prefill.all_free()
        decode.all_free()


def test_decode_side_refuses_after_the_prefill_is_done(fleet: Fleet) -> None:
    prefill, decode = fleet.get("p"), fleet.get("d")
    for number in range(ROUNDS):
        draw = random.Random(number)
        request = make(draw)
        spec = KvTransferSpec(f"t{next(_names)}", 1, True, "d", decode.address, KV.lease_s)
        prefill.submit(replace(request, request_id=leg(request), kv_transfer=spec))
        prefill.finished(leg(request))
        if number % 2:  # it was taken, and is given back; otherwise it was never taken
            decode.submit(replace(request, kv_transfer=replace(spec, producer=False, peer_address=prefill.address)))
            decode.cancel(request.request_id)
            decode.finished(request.request_id)
        prefill.all_free()
        decode.all_free()


def test_cancel_storm(fleet: Fleet) -> None:
    """Of 200 requests most are cancelled on one side or both; the others are right."""
    prefill, decode = fleet.get("p"), fleet.get("d")
    for number in range(ROUNDS):
        draw = random.Random(number)
        staying, leaving = [], []
        for _ in range(200):
            request = make(draw, longest=60)
            hand_over(request, prefill, decode)
            if draw.random() < 0.9:
                leaving.append(request)
                for end, name in draw.sample(
                    [(prefill, leg(request)), (decode, request.request_id)], draw.choice([1, 2, 2])
                ):
                    end.cancel(name)
            else:
                staying.append(request)
            if draw.random() < 0.3:
                time.sleep(0.001)
        right(decode, staying)
        decode.finished(*(request.request_id for request in leaving))
        prefill.finished(*(leg(request) for request in (*staying, *leaving)))
        prefill.all_free()
        decode.all_free()


def test_full_decode_side(fleet: Fleet) -> None:
    prefill, decode = fleet.get("p"), fleet.get("d", kv_blocks=32)
    for number in range(ROUNDS):
        draw = random.Random(number)
        requests = [make(draw) for _ in range(8)]
        for request in requests:
            hand_over(request, prefill, decode)
        right(decode, requests)
        prefill.finished(*(leg(request) for request in requests))
        prefill.all_free()
        decode.all_free()


def test_slow_pair_does_not_hold_up_a_fast_one(fleet: Fleet) -> None:
    """One decode engine hangs while KV goes to it; the other gets its KV all the same."""
    prefill, fast, slow = fleet.get("p"), fleet.get("fast"), fleet.get("slow")
    arrived = 0
    for number in range(ROUNDS):
        draw = random.Random(number)
        held, free = [make(draw) for _ in range(4)], [make(draw) for _ in range(4)]
        for request in held:
            hand_over(request, prefill, slow)
        slow.pause(0.0)
        for request in free:
            hand_over(request, prefill, fast)
        slow.pause(0.2)
        right(fast, free)
        right(slow, held)
        arrived += sum(not fast.recomputed(request.request_id) for request in free)
        for end in (prefill, fast, slow):
            end.all_free()
    assert arrived > ROUNDS  # of 4 * ROUNDS; a busy machine may cost some
