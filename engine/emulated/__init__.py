"""An engine that sleeps in place of computing: real queues, KV blocks and batches, no model.

It is for load tests of many replicas on a small machine; its times are those of a time model and not measurements.
"""

from __future__ import annotations

from engine.emulated.config import EmulatedConfig
from engine.emulated.engine import EmulatedEngine

__all__ = ["EmulatedConfig", "EmulatedEngine"]
