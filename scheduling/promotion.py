"""Best-effort residents that could be promised now: back from best effort to standard, deadlines unchanged."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from scheduling.kernels.promised import alone_s
from scheduling.kernels.rows import EPS
from scheduling.policy import AdmissionPolicy
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import AdmissionDecision, Candidate, EngineLimits, Slo


def hopeful(
    now_s: float, table: RequestTable, model: TimeModel, limits: EngineLimits, request_ids: Iterable[str]
) -> list[str]:
    """Those of these best-effort residents whose next token is not late even if they wait for nobody else.

    The table does not know whether an earlier token was late; leave such requests out.
    """
    bare = model.array / model.margin
    load = np.empty(bare.shape[0])
    found = []
    for request_id in request_ids:
        slot = table.slot(request_id)
        if table.standard[slot]:
            continue
        remaining, context = float(table.prefill_remaining[slot]), float(table.context[slot])
        soonest_s = alone_s(remaining, context, bare, float(limits.max_batch_tokens), load)
        if now_s + soonest_s <= next_due_s(table, slot) + EPS:
            found.append(request_id)
    return found


def next_due_s(table: RequestTable, slot: int) -> float:
    """When the next output token of a resident is due."""
    if table.generated[slot] == 0:
        return float(table.prefill_deadline_s[slot])
    return float(table.next_deadline_s[slot])


def promote(
    now_s: float,
    table: RequestTable,
    free_blocks: int,
    model: TimeModel,
    limits: EngineLimits,
    admission: AdmissionPolicy,
    request_ids: Iterable[str],
) -> AdmissionDecision:
    """Ask the admission policy for these best-effort residents; the accepted ones can become standard."""
    asked = hopeful(now_s, table, model, limits, request_ids)
    return admission.decide(
        now_s, table, free_blocks, model, limits, [resident_candidate(table, request_id) for request_id in asked]
    )


def resident_candidate(table: RequestTable, request_id: str) -> Candidate:
    """A resident as admission sees it (policies take its state from the table, by its id)."""
    slot = table.slot(request_id)
    arrival_s = float(table.arrival_s[slot])
    prompt = int(table.prompt_tokens[slot] + table.generated[slot])
    return Candidate(
        request_id,
        arrival_s,
        prompt,
        Slo(next_due_s(table, slot) - arrival_s, float(table.answer_tpot_s[slot]), float(table.tpot_s[slot])),
        int(table.remaining_output[slot]),
        int(table.max_remaining_output[slot]),
        float(table.value[slot]),
        min(int(table.context[slot]), prompt - 1),
    )
