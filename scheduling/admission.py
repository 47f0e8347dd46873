"""The admission problem of one replica, as arrays, and its exact oracle: what every admission policy works on.

Residents that were promised stay; candidates join while the simulated batches keep every promise, the KV that all
will need when they have grown fits, and all can decode side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from scheduling.batch_settings import BatchSettings
from scheduling.batching import settings_array
from scheduling.kernels import rollout
from scheduling.kernels.labels import label_search
from scheduling.kernels.problem import set_up
from scheduling.kernels.rows import ROWS
from scheduling.kernels.search import all_at_once, greedy
from scheduling.kernels.spare import leaves_enough
from scheduling.kernels.step import batch_caps
from scheduling.request_table import HOPEFUL, STANDARD, BoolArray, FloatArray, IntArray, RequestTable
from scheduling.speculation import counted_on
from scheduling.time_model import TimeModel
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


@dataclass(slots=True)
class Problem:
    """One replica's residents and the newcomers, ready for the kernels; items: the newcomers' columns, ascending."""

    now_s: float
    newcomers: list[Newcomer]
    residents: IntArray
    state: FloatArray
    order: IntArray
    rank: IntArray
    items: IntArray
    item_rem: FloatArray
    item_value: FloatArray
    item_position: IntArray
    lines: FloatArray
    caps: FloatArray
    limits: EngineLimits
    capacity_blocks: float

    def check(self, chosen: BoolArray) -> tuple[int, int, float, float]:
        """Verdict on a set of newcomers: (verdict, column that binds, seconds until prefills are done, peak blocks)."""
        return all_at_once(
            self.state,
            self.order,
            self.now_s,
            self.rank,
            self.items,
            self.item_rem,
            chosen,
            *self._engine(),
        )

    def only(self, items: BoolArray) -> Problem:
        """The same problem with these newcomers alone."""
        return replace(
            self,
            newcomers=[new for new, yes in zip(self.newcomers, items, strict=True) if yes],
            items=self.items[items],
            item_rem=self.item_rem[items],
            item_value=self.item_value[items],
            item_position=self.item_position[items],
        )

    def leaves_enough(self, worth: FloatArray, prompts: FloatArray, shares: FloatArray, all_done_s: float) -> BoolArray:
        """Which newcomers leave enough free for requests to come: see kernels.spare."""
        return leaves_enough(
            self.state,
            len(self.residents),
            worth,
            prompts,
            self.order,
            self.now_s,
            self.rank,
            self.items,
            self.item_rem,
            self.item_value,
            shares,
            all_done_s,
            *self._engine(),
        )

    def feasible(self, chosen: BoolArray) -> bool:
        """Whether the oracle holds the set feasible."""
        return self.check(chosen)[0] == rollout.FEASIBLE

    def greedy(self, start: BoolArray | None = None) -> tuple[BoolArray, IntArray, IntArray]:
        """Add newcomers one by one in deadline order; (accepted, verdict, column that binds) for each.

        start: a feasible set that is in from the beginning.
        """
        return greedy(
            self.state.copy(),
            self.order,
            self.now_s,
            self.rank,
            self.items,
            self.item_rem,
            self.item_position,
            np.zeros(len(self.items), dtype=np.bool_) if start is None else start,
            *self._engine(),
        )

    def label_search(self, max_labels: int, beat: float = -1.0) -> tuple[BoolArray, float, int, bool]:
        """Most valuable set worth more than `beat`; (accepted, value, labels used, whether they ran out).

        Nobody and `beat` when no better one was found.
        """
        return label_search(
            self.state,
            self.order,
            self.now_s,
            self.rank,
            self.items,
            self.item_rem,
            self.item_value,
            self.item_position,
            max_labels,
            beat,
            *self._engine(),
        )

    def _engine(self) -> tuple[FloatArray, FloatArray, float, float, float, float]:
        limits = self.limits
        return (
            self.lines,
            self.caps,
            float(limits.max_batch_tokens),
            float(limits.max_batch_requests),
            float(limits.block_size),
            self.capacity_blocks,
        )


def build(
    now_s: float,
    table: RequestTable,
    free_blocks: int,
    model: TimeModel,
    limits: EngineLimits,
    newcomers: Sequence[Newcomer],
    settings: BatchSettings,
    best_effort_floor: float = 0.0,
    beside_hopeful: bool = False,
) -> Problem:
    """Set the problem up; newcomers are sorted by (decoding already, deadline, id).

    best_effort_floor: while best-effort work is resident, promises may use this much less of the engine's time.
    beside_hopeful: hopeful requests count as residents too.
    """
    ordered = sorted(newcomers, key=lambda new: (new.rem > 0, new.due_s, new.request_id))
    flags = table.flags
    if beside_hopeful:
        flags = flags.copy()
        flags[STANDARD] |= flags[HOPEFUL]
    columns = np.array([(new.rem, new.due_s, new.pace_s, new.ctx, new.out) for new in ordered], dtype=np.float64)
    residents, state, order, rank, items, item_rem, item_position, held_blocks, best_effort = set_up(
        table.ints,
        table.floats,
        flags,
        table.high_water,
        now_s,
        model.array / model.margin,
        float(limits.max_batch_tokens),
        columns.reshape(-1, ROWS),
    )
    # Writable in every case: numba compiles a kernel once more for read-only arrays.
    lines = model.array.copy()
    if best_effort_floor > 0.0 and best_effort:
        lines /= 1.0 - best_effort_floor
    caps = batch_caps(lines, settings_array(settings))
    if limits.max_spec_tokens > 1 and (accept_rate := table.accept_rate[residents]).any():
        share = table.draft_share[residents]
        lines = counted_on(accept_rate, share, state, items, item_rem, lines, caps, limits.max_spec_tokens)
    return Problem(
        now_s=now_s,
        newcomers=ordered,
        residents=residents,
        state=state,
        order=order,
        rank=rank,
        items=items,
        item_rem=item_rem,
        item_value=np.array([new.value for new in ordered], dtype=np.float64),
        item_position=item_position,
        lines=lines,
        caps=caps,
        limits=limits,
        capacity_blocks=float(free_blocks + held_blocks),
    )


def reason(problem: Problem, item: int, verdict: int, bind: int, table: RequestTable) -> str:
    """Why a newcomer is not promised anything, for people."""
    new = problem.newcomers[item]
    n = len(problem.residents)
    if bind < 0:
        who = ""
    elif bind < n:
        who = f"request {table.request_id(int(problem.residents[bind]))}"
    else:
        other = problem.newcomers[int(np.searchsorted(problem.items, bind))]
        who = "this request" if other is new else f"request {other.request_id}, due earlier"
    if verdict == rollout.NO_MEMORY:
        blocks = -(-(new.ctx + new.rem + new.out) // problem.limits.block_size)
        return (
            f"KV memory: with the {blocks} blocks this request will need, the peak exceeds "
            f"{int(problem.capacity_blocks)} blocks; wait, or lower max_tokens"
        )
    if verdict == rollout.OVERLOAD:
        return (
            "the engine cannot decode all promised requests at their TPOT with this one among them; use a looser TPOT"
        )
    if verdict == rollout.TOO_MANY:
        return f"the engine runs at most {problem.limits.max_batch_requests} requests at once; wait for one to finish"
    if verdict == rollout.LATE_DECODE:
        return f"{who} would get a token late: no time is left for this prompt; use a looser TPOT or wait"
    left_s = new.due_s - problem.now_s
    return (
        f"{who} would get its first token late: {new.rem} prompt tokens are due in {1000 * left_s:.0f} ms behind work "
        "already promised; use a looser TTFT or wait"
    )
