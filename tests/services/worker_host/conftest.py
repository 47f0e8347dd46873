from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.common.embedded_redis import EmbeddedRedis
from services.common.store import Store, StoreSettings
from tests.fixtures.cluster import Cluster


@pytest.fixture(scope="module")
def cluster(redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Workers of this module, all in one registry."""
    with Cluster(tmp_path_factory.mktemp("workers"), redis_server) as running:
        yield running


@pytest.fixture
async def store(cluster: Cluster) -> AsyncIterator[Store]:
    opened = Store(cluster.store_settings)
    yield opened
    await opened.close()


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with a Redis of its own, which a test may kill."""
    with Cluster(tmp_path / "cluster") as running:
        yield running


@pytest.fixture
def own_store_settings(redis_server: EmbeddedRedis) -> StoreSettings:
    return StoreSettings(url=redis_server.url, prefix=f"test-{uuid.uuid4().hex}")
