"""What an engine must survive while KV is on its way, as tests for any kind of engine.

Engines in processes of their own die, hang, refuse and fill up, in many rounds. Those that live go through all rounds
of a test, so that a leak in one round shows in the next.
"""

from __future__ import annotations

import itertools
import random
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import pytest

from engine.kv.config import KvConfig
from engine.protocol import EngineRequest, KvTransferSpec, SamplingSpec
from tests.engine.engine_peer import Peer

_names = itertools.count()


class Kind(Protocol):
    """A kind of engine. pace: how much longer things take than on an emulated one. kv: settings of its exchange."""

    rounds: int
    pace: float
    kv: KvConfig

    def start(self, name: str, exchange: KvConfig, *, small: bool = False, namespace: str = "") -> Peer:
        """Start an engine; small: with KV memory for few requests."""
        ...

    def prompt(self, draw: random.Random, longest: int) -> tuple[int, ...]:
        """Token ids; longest is the length that an emulated engine would get."""
        ...

    def check(self, requests: Sequence[EngineRequest], outputs: Sequence[list[int]]) -> None:
        """Compare with what the undisturbed engine says."""
        ...


class Fleet:
    """Engines of one kind by name, made when first asked for; a dead one comes back at its old address."""

    def __init__(self, kind: Kind) -> None:
        """Start nothing."""
        self.kind = kind
        self._peers: dict[str, Peer] = {}
        self._ports: dict[str, int] = {}

    def get(self, name: str, *, small: bool = False) -> Peer:
        """Return an engine that lives."""
        peer = self._peers.get(name)
        if peer is None or not peer.process.is_alive():
            if name not in self._ports:
                with socket.create_server(("127.0.0.1", 0)) as probe:
                    self._ports[name] = probe.getsockname()[1]
            exchange = replace(self.kind.kv, port=self._ports[name])
            peer = self._peers[name] = self.kind.start(name, exchange, small=small)
        return peer

    def close(self) -> None:
        """End all of them."""
        for peer in self._peers.values():
            peer.kill()

    def make(self, draw: random.Random, longest: int = 90) -> EngineRequest:
        """Draw a request."""
        prompt = self.kind.prompt(draw, longest)
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

    def hand_over(self, request: EngineRequest, prefill: Peer, decode: Peer) -> None:
        """Submit both halves, as a controller does."""
        spec = self.transfer(decode)
        self.compute(request, prefill, spec)
        self.take(request, prefill, decode, spec)

    def compute(self, request: EngineRequest, prefill: Peer, spec: KvTransferSpec) -> None:
        """Submit the producer's half: one token, for an engine that went on would write on into the last block."""
        prefill.submit(
            replace(
                request,
                request_id=leg(request),
                prompt_tokens=len(request.token_ids),
                sampling=SamplingSpec(temperature=0.0, max_tokens=1, ignore_eos=True),
                kv_transfer=spec,
            )
        )

    def take(self, request: EngineRequest, prefill: Peer, decode: Peer, spec: KvTransferSpec) -> None:
        """Submit the consumer's half."""
        decode.submit(replace(request, kv_transfer=replace(spec, producer=False, peer_address=prefill.address)))

    def under_way(self, draw: random.Random, prefill: Peer, decode: Peer, count: int = 6) -> list[EngineRequest]:
        """Draw requests and hand them over; returns at once."""
        requests = [self.make(draw) for _ in range(count)]
        for request in requests:
            self.hand_over(request, prefill, decode)
        return requests

    def transfer(self, decode: Peer) -> KvTransferSpec:
        """The producer's end of a new transfer."""
        return KvTransferSpec(f"t{next(_names)}", 1, True, "d", decode.address, self.kind.kv.lease_s)

    def right(self, decode: Peer, requests: Sequence[EngineRequest]) -> None:
        """Wait for requests and compare their tokens with the undisturbed run."""
        decode.finished(*(request.request_id for request in requests))
        self.kind.check(requests, [decode.tokens(request.request_id) for request in requests])

    def pause(self, draw: random.Random, longest_s: float = 0.05) -> None:
        """Let a part of what is under way happen."""
        time.sleep(draw.uniform(0.0, longest_s) * self.kind.pace)


def leg(request: EngineRequest) -> str:
    """Name of the half that computes the prompt."""
    return request.request_id + "~p"


class FaultTests:
    """Wants a fixture `fleet`."""

    def test_prefill_engine_is_killed_while_kv_is_on_its_way_and_comes_back(self, fleet: Fleet) -> None:
        decode, recomputed = fleet.get("d"), 0
        for number in range(fleet.kind.rounds):
            draw = random.Random(number)
            prefill = fleet.get("p")
            requests = fleet.under_way(draw, prefill, decode)
            fleet.pause(draw)
            prefill.kill()
            fleet.right(decode, requests)
            decode.all_free()
            recomputed += sum(decode.recomputed(request.request_id) for request in requests)
        assert recomputed  # some were hit in the middle

    def test_decode_engine_is_killed_mid_transfer_or_mid_decode_and_comes_back(self, fleet: Fleet) -> None:
        """Its requests go on from their tokens on the engine that takes its place, with KV sent once more."""
        prefill = fleet.get("p")
        for number in range(fleet.kind.rounds):
            draw = random.Random(number)
            decode = fleet.get("d")
            requests = fleet.under_way(draw, prefill, decode)
            fleet.pause(draw)
            decode.kill()
            prefill.finished(*(leg(request) for request in requests))
            prefill.all_free()
            successor = fleet.get("d")
            again = []
            for request in requests:
                said = decode.tokens(request.request_id)
                if decode.finish(request.request_id):
                    fleet.kind.check([request], [said])
                    continue
                name = f"{request.request_id}-again"
                again.append((request, said, replace(request, request_id=name, token_ids=(*request.token_ids, *said))))
            for _, _, rest in again:
                fleet.hand_over(rest, prefill, successor)
            successor.finished(*(rest.request_id for _, _, rest in again))
            fleet.kind.check(
                [request for request, _, _ in again],
                [said + successor.tokens(rest.request_id) for _, said, rest in again],
            )
            successor.all_free()
            prefill.finished(*(leg(rest) for _, _, rest in again))
            prefill.all_free()

    @pytest.mark.parametrize("side", ["p", "d"])
    def test_stall_in_place_of_a_cut(self, fleet: Fleet, side: str) -> None:
        """Sockets stay open and nothing moves for longer than every timeout; then it goes on as if nothing had been."""
        prefill, decode = fleet.get("p"), fleet.get("d")
        for number in range(fleet.kind.rounds):
            draw = random.Random(number)
            requests = fleet.under_way(draw, prefill, decode)
            fleet.pause(draw, 0.03)
            fleet.get(side).pause(fleet.kind.kv.io_timeout_s + 0.2)
            fleet.right(decode, requests)
            prefill.finished(*(leg(request) for request in requests))
            prefill.all_free()
            decode.all_free()

    def test_decode_side_refuses_after_the_prefill_is_done(self, fleet: Fleet) -> None:
        prefill, decode = fleet.get("p"), fleet.get("d")
        for number in range(fleet.kind.rounds):
            draw = random.Random(number)
            request = fleet.make(draw)
            spec = fleet.transfer(decode)
            fleet.compute(request, prefill, spec)
            prefill.finished(leg(request))
            if number % 2:  # it was taken, and is given back; otherwise it was never taken
                fleet.take(request, prefill, decode, spec)
                decode.cancel(request.request_id)
                decode.finished(request.request_id)
            prefill.all_free()
            decode.all_free()

    def test_cancel_storm(self, fleet: Fleet) -> None:
        """Of 200 requests most are cancelled on one side or both; the others are right."""
        prefill, decode = fleet.get("p"), fleet.get("d")
        for number in range(fleet.kind.rounds):
            draw = random.Random(number)
            staying, leaving = [], []
            for _ in range(200):
                request = fleet.make(draw, longest=60)
                fleet.hand_over(request, prefill, decode)
                if draw.random() < 0.9:
                    leaving.append(request)
                    for end, name in draw.sample(
                        [(prefill, leg(request)), (decode, request.request_id)], draw.choice([1, 2, 2])
                    ):
                        end.cancel(name)
                else:
                    staying.append(request)
                if draw.random() < 0.3:
                    time.sleep(0.001 * fleet.kind.pace)
            fleet.right(decode, staying)
            decode.finished(*(request.request_id for request in leaving))
            prefill.finished(*(leg(request) for request in (*staying, *leaving)))
            prefill.all_free()
            decode.all_free()

    def test_full_decode_side(self, fleet: Fleet) -> None:
        prefill, decode = fleet.get("p"), fleet.get("d", small=True)
        for number in range(fleet.kind.rounds):
            draw = random.Random(number)
            requests = fleet.under_way(draw, prefill, decode, 8)
            fleet.right(decode, requests)
            prefill.finished(*(leg(request) for request in requests))
            prefill.all_free()
            decode.all_free()

    def test_slow_pair_does_not_hold_up_a_fast_one(self, fleet: Fleet) -> None:
        """One decode engine hangs while KV goes to it; the other gets its KV all the same."""
        prefill, fast, slow = fleet.get("p"), fleet.get("fast"), fleet.get("slow")
        arrived = 0
        for number in range(fleet.kind.rounds):
            draw = random.Random(number)
            held, free = [fleet.make(draw) for _ in range(4)], [fleet.make(draw) for _ in range(4)]
            for request in held:
                fleet.hand_over(request, prefill, slow)
            slow.pause(0.0)
            for request in free:
                fleet.hand_over(request, prefill, fast)
            slow.pause(0.2 * fleet.kind.pace)
            fleet.right(fast, free)
            fleet.right(slow, held)
            arrived += sum(not fast.recomputed(request.request_id) for request in free)
            for end in (prefill, fast, slow):
                end.all_free()
        assert arrived > fleet.kind.rounds  # of 4 * fleet.kind.rounds; a busy machine may cost some
