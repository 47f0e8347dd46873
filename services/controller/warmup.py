"""Runs a policy once before the first request, so that no request pays for loading or compiling it."""

from __future__ import annotations

import logging
import time

from scheduling.foresight import after_step
from scheduling.policy import Policy, ReplicaView
from scheduling.promotion import promote
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import Candidate, EngineLimits, Slo

log = logging.getLogger(__name__)

_MODEL = TimeModel(((0.02, 1e-4, 0.0, 0.0, 0.0, 0.0),), source="assumed: for warming up")
_LIMITS = EngineLimits(max_batch_tokens=512, max_batch_requests=16, block_size=16, total_blocks=64, max_model_len=1024)


def warm_up(policy: Policy) -> float:
    """Ask the policy about made-up requests, some of which fit and some do not; return the seconds it took."""
    log.info("loading policy %s; the first start after an install compiles it, which takes a minute", policy.name)
    started_s = time.monotonic()
    candidates = [
        Candidate(
            request_id=f"new {index}",
            arrival_s=0.0,
            prompt_tokens=100 + 200 * (index % 2),
            slo=Slo(0.5 + 0.2 * (index % 3), 0.05 + 0.05 * (index % 2)),
            expected_output_tokens=64,
            max_output_tokens=128,
            value=1.0 + index % 2,
        )
        for index in range(10)
    ]
    for standard in ((), (True, True), (True, True, False)):
        table = _table(standard)
        view = ReplicaView("warm-up", table, 40, _MODEL, _LIMITS)
        policy.routing.order(0.5, candidates[0], [view, view])
        policy.admission.decide(0.5, table, 40, _MODEL, _LIMITS, candidates)
        policy.admission.decide(0.5, table, 40, _MODEL, _LIMITS, candidates[:1])
        if standard:
            plan = policy.batching.plan(0.5, table, 40, _MODEL, _LIMITS)
            after_step(table, 40, plan, 0.6, _LIMITS.block_size)
            waiting = [f"resident {index}" for index, promised in enumerate(standard) if not promised]
            promote(0.5, table, 40, _MODEL, _LIMITS, policy.admission, waiting)
    seconds = time.monotonic() - started_s
    log.info("policy %s is loaded (%.1f s)", policy.name, seconds)
    return seconds


def _table(standard: tuple[bool, ...]) -> RequestTable:
    """Make a replica's table: the first request in prefill, the others decoding."""
    table = RequestTable()
    for index, promised in enumerate(standard):
        slot = table.add(
            f"resident {index}", prompt_tokens=64, prefill_deadline_s=1.0, tpot_s=0.1, standard=promised, kv_blocks=4
        )
        if index:
            table.prefilled(slot, 64)
            table.first_token(slot, 0.5)
    return table
