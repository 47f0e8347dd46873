"""Who asks an admission policy for a promise: new requests, and best-effort residents that could be promoted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scheduling.kernels.rows import ROWS
from scheduling.request_table import FloatArray, RequestTable
from scheduling.types import Candidate, EngineLimits


class Newcomer(NamedTuple):
    """A request that asks for a promise: a new one, or a best-effort resident that could be promoted.

    rem: prompt tokens to compute (0 when it decodes already); due_s: when its next token is due; ctx: tokens
    resident; out: output tokens still to come, estimated; slot: where it is in the table, -1 for a new one.
    """

    request_id: str
    rem: int
    due_s: float
    pace_s: float
    ctx: int
    out: int
    value: float
    slot: int = -1


def columns_of(newcomers: Sequence[Newcomer]) -> FloatArray:
    """Their columns of a planner's state (kernels.rows), one row of [len(newcomers), ROWS] each."""
    columns = np.empty((len(newcomers), ROWS))
    for k, new in enumerate(newcomers):
        columns[k] = new.rem, new.due_s, new.pace_s, new.ctx, new.out
    return columns


def newcomer(candidate: Candidate) -> Newcomer:
    """The planner's view of a new request."""
    slo = candidate.slo
    pace_s = slo.tpot_s if slo.thinking_tpot_s is None else min(slo.tpot_s, slo.thinking_tpot_s)
    cached = min(candidate.cached_tokens, candidate.prompt_tokens - 1)
    output = max(min(candidate.expected_output_tokens, candidate.max_output_tokens), 1)
    return Newcomer(
        candidate.request_id,
        candidate.prompt_tokens - cached,
        candidate.prefill_deadline_s,
        pace_s,
        cached,
        output,
        candidate.value,
    )


def resident(table: RequestTable, request_id: str, value: float) -> Newcomer:
    """A best-effort resident that could be promoted, as it stands in the table."""
    slot = table.slot(request_id)
    remaining = int(table.prefill_remaining[slot])
    first = table.generated[slot] == 0
    due_s = table.prefill_deadline_s[slot] if first else table.next_deadline_s[slot]
    pace_s = min(table.tpot_s[slot], table.answer_tpot_s[slot])
    return Newcomer(
        request_id,
        remaining,
        float(due_s),
        float(pace_s),
        int(table.context[slot]),
        int(table.remaining_output[slot]),
        value,
        slot,
    )


def newcomers_of(
    candidates: Sequence[Candidate], table: RequestTable, limits: EngineLimits
) -> tuple[list[Newcomer], dict[str, str]]:
    """Candidates as newcomers, and those that can never run with the reason.

    A candidate whose id is in the table is a best-effort resident that asks for promotion.
    """
    possible: list[Newcomer] = []
    declined: dict[str, str] = {}
    for c in candidates:
        if c.request_id in table:
            possible.append(resident(table, c.request_id, c.value))
        elif c.prompt_tokens >= limits.max_model_len:
            declined[c.request_id] = (
                f"{c.prompt_tokens} prompt tokens leave no room for output in the window of {limits.max_model_len} "
                "tokens; shorten the prompt"
            )
        else:
            possible.append(newcomer(c))
    return possible, declined
