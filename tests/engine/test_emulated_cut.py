"""A prefill and a decode engine on separate hosts (network namespaces) whose link is cut and healed.

Wants the right to make network namespaces (CAP_SYS_ADMIN and iproute2), hence among the soak tests.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from tests.engine.engine_peer import Peer
from tests.engine.faults import Fleet, Kind, leg
from tests.engine.test_emulated_faults import Emulated

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]
NOBODY = "02:00:00:00:00:99"


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@dataclass(frozen=True, slots=True)
class Hosts:
    """Two namespaces, joined by one link."""

    names: tuple[str, str]
    addresses: tuple[str, str] = ("10.213.47.1", "10.213.47.2")

    def engine(self, side: int, worker_id: str, kind: Kind) -> Peer:
        """Start an engine on one of the hosts; nothing else listens there, so any port is free."""
        exchange = replace(kind.kv, host=self.addresses[side], port=7100)
        return kind.start(worker_id, exchange, namespace=self.names[side])

    def cut(self) -> None:
        """Lose every packet from now on, since it goes to nobody's card; no side is told."""
        for name, other in zip(self.names, reversed(self.addresses), strict=True):
            ip("-n", name, "neigh", "replace", other, "lladdr", NOBODY, "dev", "wire", "nud", "permanent")

    def heal(self) -> None:
        """Let packets through again."""
        for name, other in zip(self.names, reversed(self.addresses), strict=True):
            ip("-n", name, "neigh", "del", other, "dev", "wire")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    names = (f"slos-p-{os.getpid()}", f"slos-d-{os.getpid()}")
    made = Hosts(names)
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1])
        for name, address in zip(names, made.addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        for name in names:
            with contextlib.suppress(AssertionError):
                ip("netns", "del", name)


def cut_and_heal(hosts: Hosts, fleet: Fleet) -> None:
    """Cut the link while KV is on its way; tokens stay right, and after the healing KV is handed over again."""
    prefill, decode = hosts.engine(0, "p", fleet.kind), hosts.engine(1, "d", fleet.kind)
    cut_off = after_healing = 0
    try:
        for number in range(fleet.kind.rounds):
            draw = random.Random(number)
            requests = fleet.under_way(draw, prefill, decode)
            fleet.pause(draw, 0.03)
            hosts.cut()
            fleet.right(decode, requests)  # while the link is cut
            prefill.finished(*(leg(request) for request in requests))
            prefill.all_free()
            decode.all_free()
            cut_off += sum(decode.recomputed(request.request_id) for request in requests)
            hosts.heal()
            healed = fleet.make(draw)
            fleet.hand_over(healed, prefill, decode)
            fleet.right(decode, [healed])
            after_healing += not decode.recomputed(healed.request_id)
            prefill.all_free()
            decode.all_free()
        assert cut_off
        assert after_healing > fleet.kind.rounds // 2
    finally:
        prefill.kill()
        decode.kill()


@pytest.mark.parametrize("backend", ["gloo", "tcp"])
def test_cut_and_heal_between_the_pair(hosts: Hosts, backend: str) -> None:
    cut_and_heal(hosts, Fleet(Emulated(backend)))
