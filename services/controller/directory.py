"""SLO classes and tenants, cached from the store and changed through it."""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Mapping

from scheduling.classes import ALIASES, APPLICATION_CLASSES, find
from scheduling.types import SloClass
from services.common.store import Store, StoreUnavailable, Tenant
from services.controller.contract import ApiError

log = logging.getLogger(__name__)

DEFAULT_TENANT = "default"


class Directory:
    """What requests may name: classes and tenants. Reads are from memory; writes go to the store first."""

    def __init__(self, store: Store, refresh_s: float = 2.0) -> None:
        """Start with the shipped classes and the default tenant; `refresh` and `run` bring what is stored."""
        self._store = store
        self._refresh_s = refresh_s
        self.classes: Mapping[str, SloClass] = dict(APPLICATION_CLASSES)
        self.tenants: Mapping[str, Tenant] = {DEFAULT_TENANT: Tenant(DEFAULT_TENANT)}

    async def refresh(self) -> None:
        """Read everything; StoreUnavailable when Redis does not answer."""
        self.classes = await self._store.slo_classes.all()
        if not self.classes:
            # Redis may have lost its data; where an operator has removed every class, this changes nothing.
            await self._store.seed_defaults()
            self.classes = await self._store.slo_classes.all()
        self.tenants = await self._store.tenants.all()

    async def run(self) -> None:
        """Keep the cache fresh until cancelled: operators may use another controller or edit Redis."""
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self.refresh()
            except StoreUnavailable as error:
                log.debug("classes and tenants not refreshed: %s", error)

    def tenant(self, name: str) -> Tenant:
        """Tenant by name, empty for the default one; ApiError when unknown."""
        if not name or name == DEFAULT_TENANT:
            return self.tenants.get(DEFAULT_TENANT) or Tenant(DEFAULT_TENANT)
        tenant = self.tenants.get(name)
        if tenant is None:
            raise ApiError("INVALID_ARGUMENT", f"unknown tenant {name!r}{_hint(name, self.tenants)}", param="tenant")
        return tenant

    def slo_class(self, name: str, tenant: Tenant) -> SloClass:
        """Class by name or alias, empty for the tenant's default; ApiError when unknown."""
        wanted = name or tenant.default_class
        try:
            return find(wanted, self.classes)
        except KeyError:
            pass
        if name:
            message = f"unknown SLO class {name!r}{_hint(name, {**self.classes, **ALIASES})}"
        else:
            message = f"tenant {tenant.name!r} has the default class {wanted!r}, which does not exist; name a class"
        known = ", ".join(sorted(self.classes)) or "none"
        raise ApiError("INVALID_ARGUMENT", f"{message}; classes: {known}", param="slo.class")

    async def set_class(self, slo_class: SloClass) -> None:
        """Create or change a class."""
        await self._store.slo_classes.set(slo_class)
        await self.refresh()

    async def remove_class(self, name: str) -> None:
        """Remove a class; ApiError when it is unknown or a tenant's default."""
        users = sorted(tenant.name for tenant in self.tenants.values() if tenant.default_class == name)
        if users:
            raise ApiError(
                "FAILED_PRECONDITION",
                f"SLO class {name!r} is the default of tenant {', '.join(users)}; give them another default first",
                param="name",
            )
        if not await self._store.slo_classes.remove(name):
            raise ApiError("NOT_FOUND", f"there is no SLO class {name!r}{_hint(name, self.classes)}", param="name")
        await self.refresh()

    async def set_tenant(self, tenant: Tenant) -> None:
        """Create or change a tenant."""
        if tenant.default_class not in self.classes and ALIASES.get(tenant.default_class) not in self.classes:
            raise ApiError(
                "INVALID_ARGUMENT",
                f"unknown SLO class {tenant.default_class!r}{_hint(tenant.default_class, self.classes)}",
                param="default_class",
            )
        await self._store.tenants.set(tenant)
        await self.refresh()

    async def remove_tenant(self, name: str) -> None:
        """Remove a tenant; ApiError when it is unknown or the default one."""
        if name == DEFAULT_TENANT:
            raise ApiError("FAILED_PRECONDITION", "the tenant 'default' serves requests that name none", param="name")
        if not await self._store.tenants.remove(name):
            raise ApiError("NOT_FOUND", f"there is no tenant {name!r}{_hint(name, self.tenants)}", param="name")
        await self.refresh()


def _hint(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
