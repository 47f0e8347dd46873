"""Runs a policy once before the first request, so that no request pays for loading or compiling it."""

from __future__ import annotations

import logging
import time

from scheduling import compile as kernels
from scheduling.policy import Policy

log = logging.getLogger(__name__)


def warm_up(policy: Policy) -> float:
    """Run everything that a decision of this policy may call; return the seconds it took."""
    log.info("loading policy %s; the first start after an install compiles it, which takes a minute", policy.name)
    started_s = time.monotonic()
    kernels.warm_up((policy.name,))
    seconds = time.monotonic() - started_s
    log.info("policy %s is loaded (%.1f s)", policy.name, seconds)
    return seconds
