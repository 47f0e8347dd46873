"""Real engines survive what they must survive while KV is on its way, twenty times each.

An engine takes half a minute to come back from its death, hence among the soak tests. SLOS_SOAK_ROUNDS sets another
number of rounds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from engine.kv.config import KvConfig
from engine.protocol import Engine, EngineRequest
from engine.vllm.config import VllmConfig
from engine.vllm.engine import VllmEngine
from engine.vllm.kv.settings import with_kv_exchange
from tests.engine.engine_peer import Peer
from tests.engine.faults import FaultTests, Fleet
from tests.engine.test_emulated_cut import Hosts, cut_and_heal, hosts
from tests.engine_vllm.reference import TOLERANCE, Reference

__all__ = ["hosts"]

pytestmark = [pytest.mark.soak, pytest.mark.real_engine, pytest.mark.timeout(3600)]


def real(config: VllmConfig) -> Engine:
    """Make a real engine."""
    return VllmEngine(config)


class Real:
    """Real engines on one core each; see tests.engine.faults.Kind."""

    rounds = int(os.environ.get("SLOS_SOAK_ROUNDS", "20"))
    pace = 20.0
    kv = KvConfig(checksum=True, heartbeat_s=0.3, lease_s=3.0, io_timeout_s=3.0)

    def __init__(self, model: Path, reference: Reference) -> None:
        """Take the model, and what knows its tokens."""
        self._model = model
        self._reference = reference
        self._started = 0

    def start(self, name: str, exchange: KvConfig, *, small: bool = False, namespace: str = "") -> Peer:
        """Start an engine on the next core."""
        cores = sorted(os.sched_getaffinity(0))
        core = cores[self._started % len(cores)]
        self._started += 1
        config = VllmConfig(
            model_dir=self._model,
            max_model_len=1024,
            max_num_batched_tokens=256,
            max_num_seqs=16,
            kv_blocks=12 if small else 64,
            policy="vllm-v1",
            omp_threads_bind=str(core),
        )
        return Peer(with_kv_exchange(config, name, exchange), namespace, real, wait_s=150.0)

    def prompt(self, draw: random.Random, longest: int) -> tuple[int, ...]:
        """Draw token ids: of plain words, for up to five blocks."""
        return tuple(draw.randint(300, 20_000) for _ in range(draw.randint(1, 7 * longest)))

    def check(self, requests: Sequence[EngineRequest], outputs: Sequence[list[int]]) -> None:
        """Tokens are those of the reference, as near as batches of other sizes let them be."""
        gaps = []
        for request, output in zip(requests, outputs, strict=True):
            assert len(output) == request.sampling.max_tokens
            gaps.append(self._reference.gap(list(request.token_ids), output))
        assert max(gaps, default=0.0) <= TOLERANCE


@pytest.fixture(scope="module")
def kind(model_folder: Path) -> Real:
    return Real(model_folder, Reference(model_folder))


@pytest.fixture
def fleet(kind: Real) -> Iterator[Fleet]:
    running = Fleet(kind)
    yield running
    running.close()


class TestReal(FaultTests):
    """All of them."""


def test_cut_and_heal_between_real_engines(hosts: Hosts, kind: Real) -> None:
    cut_and_heal(hosts, Fleet(kind))
