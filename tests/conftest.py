"""What the whole run shares: the model folder, one emulated cluster and one with the real engine.

Both clusters are started when a test first asks for them, with slosctl, on free ports, in folders of their own.
Tests that kill or drain parts start a cluster of their own with tests.cluster.start.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.vllm.model import ensure_model
from services.common.embedded_redis import EmbeddedRedis
from tests import cluster
from tests.cluster import Cluster


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """Folder of SmolLM2-135M-Instruct, made once per checkout."""
    return ensure_model()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """One Redis for the whole run; keep tests apart with a key prefix of their own."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def emulated_cluster(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two emulated replicas behind a controller. Leave it as you found it: no drains, no removed classes."""
    running = cluster.start(
        tmp_path_factory.mktemp("emulated"), model_folder, "--engine", "emulated", "--replicas", "2"
    )
    try:
        yield running
    finally:
        cluster.stop(running)


@pytest.fixture(scope="session")
def real_cluster(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One replica of real vLLM behind a controller; shared like emulated_cluster."""
    options = ("--engine", "vllm", "--worker-option=--profile-quick")
    running = cluster.start(tmp_path_factory.mktemp("real"), model_folder, *options)
    try:
        yield running
    finally:
        cluster.stop(running)
