from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from services.common.embedded_redis import EmbeddedRedis
from services.common.store import Store, StoreSettings
from tests.fixtures.controller import ControlledCluster, controlled


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlledCluster]:
    """A controller with two emulated workers, shared: leave it as you found it."""
    with controlled(tmp_path_factory.mktemp("two-workers"), workers=2) as cluster:
        yield cluster


@pytest.fixture
def healthy(two_workers: ControlledCluster) -> Iterator[ControlledCluster]:
    """The shared cluster; afterwards nothing may be left behind."""
    yield two_workers
    two_workers.settled()


@pytest.fixture
async def store(redis_server: EmbeddedRedis) -> AsyncIterator[Store]:
    """A store of its own on the shared Redis."""
    opened = Store(StoreSettings(url=redis_server.url, prefix=uuid.uuid4().hex))
    yield opened
    await opened.close()
