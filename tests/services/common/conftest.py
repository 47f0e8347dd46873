from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from services.common.embedded_redis import EmbeddedRedis
from services.common.store import Store, StoreSettings


@pytest.fixture
async def store(redis_server: EmbeddedRedis) -> AsyncIterator[Store]:
    """A store under a prefix of its own."""
    opened = Store(StoreSettings(url=redis_server.url, prefix=f"test-{uuid.uuid4().hex}"))
    yield opened
    await opened.close()
