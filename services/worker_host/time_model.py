"""The time model that a worker announces: the stored fit for this model, hardware and settings, or a new one."""

from __future__ import annotations

import logging

from engine.protocol import Engine, EngineInfo, StepSettings
from scheduling.time_model import TimeModel
from services.common.store import Store, StoreUnavailable, TimeModelKey

log = logging.getLogger(__name__)


async def time_model(
    engine: Engine, info: EngineInfo, settings_key: str, store: Store, profile_anew: bool, quick: bool
) -> str:
    """Return the time model's JSON, and let the engine plan with it; EngineError when it cannot be profiled.

    settings_key empty: nothing is looked up or stored.
    """
    key = TimeModelKey(info.model, info.hardware, settings_key)
    text = None
    if settings_key and not profile_anew:
        text = await _stored(store, key)
    if text is None:
        log.info("profiling the engine", extra={"model": info.model, "hardware": info.hardware})
        text = await engine.profile(quick)
        if settings_key:
            try:
                await store.time_models.set(key, text)
            except StoreUnavailable as error:
                log.warning("the time model is not kept: %s", error)
    await engine.configure(StepSettings(time_model_json=text))
    return text


async def _stored(store: Store, key: TimeModelKey) -> str | None:
    try:
        text = await store.time_models.get(key)
    except StoreUnavailable as error:
        log.warning("no stored time model: %s", error)
        return None
    if text is None:
        return None
    try:
        TimeModel.from_json(text)
    except ValueError as error:
        log.warning("the stored time model cannot be read and is made anew: %s", error)
        return None
    log.info("took the stored time model", extra={"key": str(key)})
    return text
