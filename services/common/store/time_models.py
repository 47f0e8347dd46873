"""Fitted time models, so that a worker profiles its engine once per model, hardware and settings."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from services.common.store.connection import StoreConnection
from services.common.store.keys import Keys


@dataclass(frozen=True, slots=True)
class TimeModelKey:
    """What a fit belongs to; engine_settings names every setting that changes step times, for example the dtype."""

    model: str
    hardware: str
    engine_settings: str = ""

    def __str__(self) -> str:
        """Give the name in Redis."""
        return json.dumps(asdict(self), sort_keys=True)


class TimeModels:
    """Time models (JSON of scheduling.time_model) by what they belong to."""

    def __init__(self, connection: StoreConnection, keys: Keys) -> None:
        """Share the connection."""
        self._connection = connection
        self._key = keys.time_models

    async def get(self, key: TimeModelKey) -> str | None:
        """Return the model, or None when none was stored."""
        text: str | None = await self._connection.run(self._connection.redis.hget(self._key, str(key)))
        return text

    async def set(self, key: TimeModelKey, model_json: str) -> None:
        """Store or replace a model."""
        await self._connection.run(self._connection.redis.hset(self._key, str(key), model_json))

    async def all(self) -> dict[TimeModelKey, str]:
        """Every model that is stored."""
        texts = await self._connection.run(self._connection.redis.hgetall(self._key))
        return {TimeModelKey(**json.loads(name)): texts[name] for name in sorted(texts)}

    async def remove(self, key: TimeModelKey) -> bool:
        """Forget a model, so that the next worker profiles again; False when there was none."""
        return bool(await self._connection.run(self._connection.redis.hdel(self._key, str(key))))
