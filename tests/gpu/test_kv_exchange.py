"""The KV exchange with caches on GPUs: between two of them over NCCL, and on one of them through host memory."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from tests.engine.kv.test_faults import Peer, exchange, leaves_nothing

GPUS = torch.cuda.device_count()
one_gpu = pytest.mark.skipif(GPUS < 1, reason="needs an NVIDIA GPU and a CUDA build of torch: none is here")
two_gpus = pytest.mark.skipif(GPUS < 2, reason=f"needs two NVIDIA GPUs, since NCCL refuses a pair on one: {GPUS} here")


@pytest.fixture
def started() -> Iterator[list[Peer]]:
    peers: list[Peer] = []
    yield peers
    for peer in peers:
        peer.close()


@pytest.mark.parametrize(
    ("backend", "producer", "consumer"),
    [
        pytest.param("gloo", "cuda:0", "cuda:0", marks=one_gpu, id="one-gpu"),
        pytest.param("nccl", "cuda:0", "cuda:1", marks=two_gpus, id="two-gpus"),
    ],
)
@pytest.mark.timeout(300)
def test_blocks_arrive_whole_and_a_dead_peer_is_survived(
    started: list[Peer], backend: str, producer: str, consumer: str
) -> None:
    """Gather, streams, pinned buffers or NCCL, and scatter, with checksums; then the producer dies and comes back."""
    draw = random.Random(1)
    source, target = Peer(1, device=producer, backend=backend), Peer(2, device=consumer, backend=backend)
    started += [source, target]
    for number in range(20):
        exchange(source, target, f"t{number}", draw)
    leaves_nothing(source)
    leaves_nothing(target)
    target.order("expect", id="lost", blocks=[1, 2, 3])
    source.order("offer", id="lost", to=target.address)
    source.close()
    assert target.end_of("lost") != ""
    again = Peer(3, device=producer, backend=backend)
    started.append(again)
    exchange(again, target, "after", draw)
    leaves_nothing(target)
