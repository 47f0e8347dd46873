"""SLO classes and tenants, as operators edit them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scheduling.classes import DEFAULT_CLASS
from scheduling.types import SloClass
from services.common.store.connection import StoreConnection
from services.common.store.keys import Keys

# KEYS: marker set, hash. ARGV: member of the marker, then name, text, name, text ...
_SEED = """
if redis.call('SADD', KEYS[1], ARGV[1]) == 0 then return 0 end
for i = 2, #ARGV, 2 do redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) end
return 1
"""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose request it is; weight multiplies the value of its promises."""

    name: str
    weight: float = 1.0
    default_class: str = DEFAULT_CLASS


class SloClasses:
    """SLO classes by name."""

    def __init__(self, connection: StoreConnection, keys: Keys) -> None:
        """Share the connection."""
        self._table = _Table(connection, keys.slo_classes, keys.seeded)

    async def seed(self, defaults: Iterable[SloClass]) -> None:
        """Enter the defaults, once; what operators have changed or removed since then stays as they left it."""
        await self._table.seed({slo_class.name: dataclasses.asdict(slo_class) for slo_class in defaults})

    async def all(self) -> dict[str, SloClass]:
        """Every class by name."""
        known = {field.name for field in dataclasses.fields(SloClass)}
        return {
            name: SloClass(**{key: value for key, value in fields.items() if key in known})
            for name, fields in (await self._table.all()).items()
        }

    async def set(self, slo_class: SloClass) -> None:
        """Create or replace a class."""
        await self._table.set(slo_class.name, dataclasses.asdict(slo_class))

    async def remove(self, name: str) -> bool:
        """Remove a class; False when there was none."""
        return await self._table.remove(name)


class Tenants:
    """Tenants by name."""

    def __init__(self, connection: StoreConnection, keys: Keys) -> None:
        """Share the connection."""
        self._table = _Table(connection, keys.tenants, keys.seeded)

    async def seed(self, defaults: Iterable[Tenant] = (Tenant("default"),)) -> None:
        """Enter the defaults, once."""
        await self._table.seed({tenant.name: dataclasses.asdict(tenant) for tenant in defaults})

    async def all(self) -> dict[str, Tenant]:
        """Every tenant by name."""
        known = {field.name for field in dataclasses.fields(Tenant)}
        return {
            name: Tenant(**{key: value for key, value in fields.items() if key in known})
            for name, fields in (await self._table.all()).items()
        }

    async def set(self, tenant: Tenant) -> None:
        """Create or replace a tenant."""
        await self._table.set(tenant.name, dataclasses.asdict(tenant))

    async def remove(self, name: str) -> bool:
        """Remove a tenant; False when there was none."""
        return await self._table.remove(name)


class _Table:
    """A hash of JSON objects by name."""

    def __init__(self, connection: StoreConnection, key: str, seeded_key: str) -> None:
        self._connection = connection
        self._key = key
        self._seeded_key = seeded_key
        self._seed = connection.redis.register_script(_SEED)

    async def seed(self, rows: dict[str, dict[str, Any]]) -> None:
        args = [self._key]
        for name, fields in rows.items():
            args += [name, json.dumps(fields)]
        await self._connection.run(self._seed(keys=[self._seeded_key, self._key], args=args))

    async def all(self) -> dict[str, dict[str, Any]]:
        texts = await self._connection.run(self._connection.redis.hgetall(self._key))
        return {name: json.loads(texts[name]) for name in sorted(texts)}

    async def set(self, name: str, fields: dict[str, Any]) -> None:
        await self._connection.run(self._connection.redis.hset(self._key, name, json.dumps(fields)))

    async def remove(self, name: str) -> bool:
        return bool(await self._connection.run(self._connection.redis.hdel(self._key, name)))
