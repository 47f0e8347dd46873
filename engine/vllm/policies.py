"""Batch policies by name, as the step scheduler takes them."""

from __future__ import annotations

import importlib

from scheduling import registry
from scheduling.policy import BatchPolicy

STOCK = "stock"
"""Name that stands for vLLM's own scheduler."""


def load(name: str, best_effort_floor: float | None = None) -> BatchPolicy | None:
    """Batch policy by name; None for vLLM's own scheduler; ValueError says what is wrong with the name.

    "package.module:function" stands for a policy from elsewhere: the function takes nothing and returns a BatchPolicy.
    """
    if name == STOCK:
        return None
    module, colon, function = name.partition(":")
    if not colon:
        try:
            return registry.batch_policy(name, best_effort_floor)
        except ImportError as error:
            raise ValueError(f"policy {name!r} cannot be loaded: {error}") from error
    try:
        policy: BatchPolicy = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"policy {name!r} cannot be loaded: {error}") from error
    return policy
