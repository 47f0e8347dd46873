"""The rate at which one engine is about full, estimated from its time model: what `--rate 0.8x` is a multiple of."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.plan import PlannedSession
from loadtest.slo_scale import step_s
from scheduling.time_model import BatchShape, TimeModel


def knee_rate_per_s(models: Sequence[TimeModel], sessions: Sequence[PlannedSession]) -> float:
    """Sessions per second that fill all engines with steps of tight TPOT.

    Such a step lasts twice the time of a single token (loadtest.slo_scale); the other half is left for tokens. A token
    that is already in the KV cache when its round comes costs nothing here.
    """
    if not models:
        raise ValueError("no replica has a fitted time model yet; wait for one, or give --rate a number per second")
    tokens = sum(r.added_tokens + r.output_tokens for s in sessions for r in s.rounds) / len(sessions)
    return sum(_tokens_per_s(model.with_margin(1.0)) for model in models) / tokens


def _tokens_per_s(model: TimeModel) -> float:
    batch = max(1, model.max_new_tokens(2 * step_s(model), requests=1.0))
    return batch / model.duration_s(BatchShape(float(batch), 1.0))
