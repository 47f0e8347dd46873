"""Emulated engines survive what they must survive while KV is on its way, twenty times each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from engine.emulated import EmulatedConfig
from engine.kv.config import KvConfig
from engine.protocol import EngineRequest
from scheduling.time_model import TimeModel
from tests.engine.engine_peer import Peer
from tests.engine.faults import FaultTests, Fleet
from tests.engine.test_emulated_core import alone

pytestmark = pytest.mark.timeout(300)
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


class Emulated:
    """Emulated engines; see tests.engine.faults.Kind."""

    rounds = 20
    pace = 1.0

    def __init__(self, backend: str) -> None:
        """Take the way in which they move KV."""
        self.kv = replace(KV, backend=backend)

    def start(self, name: str, exchange: KvConfig, *, small: bool = False, namespace: str = "") -> Peer:
        """Start an engine."""
        blocks = 32 if small else CONFIG.kv_blocks
        return Peer(replace(CONFIG, worker_id=name, kv_exchange=exchange, kv_blocks=blocks), namespace)

    def prompt(self, draw: random.Random, longest: int) -> tuple[int, ...]:
        """Draw token ids."""
        return tuple(draw.randint(8, 99) for _ in range(draw.randint(1, longest)))

    def check(self, requests: Sequence[EngineRequest], outputs: Sequence[list[int]]) -> None:
        """Tokens are exactly those of an engine alone."""
        for request, output in zip(requests, outputs, strict=True):
            said = alone(replace(request, kv_transfer=None), replace(CONFIG, kv_exchange=None))
            assert output == [token for update in said for token in update.token_ids]


@pytest.fixture(params=["gloo", "tcp"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    running = Fleet(Emulated(request.param))
    yield running
    running.close()


class TestEmulated(FaultTests):
    """All of them."""
