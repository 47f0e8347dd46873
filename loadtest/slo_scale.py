"""How tight 50 ms is on this engine: TPOT SLOs in units of the engine's own step time.

The paper's tight and loose TPOT are 2 and 4 times what its smallest model's step takes for a single token (24.9 ms,
OPT-6.7B on an A100). On an engine whose step takes twice that, the same meaning is 100 and 200 ms. TTFT SLOs are
multiples of the zero-load prefill time already, and need no scale.
"""

from __future__ import annotations

from collections.abc import Iterable

from scheduling.time_model import BatchShape, TimeModel
from simulation import profiles

REFERENCE_PROFILE = "a100-opt-7b"
_CONTEXT_TOKENS = 256


def step_s(model: TimeModel) -> float:
    """Time of a step that decodes one request of a few hundred tokens, without margin."""
    return model.with_margin(1.0).duration_s(BatchShape(1.0, 1.0, _CONTEXT_TOKENS))


def reference_step_s() -> float:
    """The same on the paper's GPU."""
    return step_s(profiles.load(REFERENCE_PROFILE).time_model)


def scale_for(models: Iterable[TimeModel]) -> float:
    """Factor for the slowest of the engines; ValueError when there is none."""
    steps = [step_s(model) for model in models]
    if not steps:
        raise ValueError(
            "no replica has a fitted time model yet; wait until one is ready, or give --slo-scale a number"
        )
    return max(steps) / reference_step_s()
