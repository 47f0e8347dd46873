"""The paper's admission problem (ALGORITHMS section 3): tier counts, full memory reservation, surplus budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduling.kernels.batches import CAPS
from scheduling.kernels.budget import token_lines
from scheduling.kernels.problem import counted_on
from scheduling.kernels.promised import keep_promised
from scheduling.kernels.rows import CTX, DUE, OUT, PACE, REM
from scheduling.kernels.tierplan import chain_feasible, plan_tiers
from scheduling.newcomers import Newcomer, columns_of
from scheduling.paper_batching import PaperBatching
from scheduling.request_table import BoolArray, FloatArray, IntArray, RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits

MAX_NEW = 10
"""New requests per call, as in the paper."""


@dataclass(frozen=True, slots=True)
class TierProblem:
    """Items (running and new prefills by deadline) and running decodes per tier; `new_index` is -1 for running ones."""

    deadline: FloatArray
    tokens: FloatArray
    memory: FloatArray
    value: FloatArray
    tier: IntArray
    forced: BoolArray
    new_index: IntArray
    tiers: FloatArray
    decoding: IntArray
    free_memory: float
    lines: FloatArray
    max_tokens: float

    def solve(self, beat: float = -1.0) -> tuple[BoolArray, float, bool]:
        """Algorithm 1: (accepted per item, value, whether the running requests alone are feasible).

        beat: sets worth no more than this are of no interest; when there are only such, the answer means nothing.
        """
        return plan_tiers(
            self.deadline,
            self.tokens,
            self.memory,
            self.value,
            self.tier,
            self.forced,
            self.tiers,
            self.decoding,
            self.free_memory,
            self.lines,
            self.max_tokens,
            beat,
        )

    def solve_for(self, newcomers: Sequence[Newcomer], beat: float = -1.0) -> tuple[set[str], float, bool]:
        """Solve; ids of the accepted newcomers, their value, and whether the running requests are feasible."""
        chosen, value, running = self.solve(beat)
        accepted = {newcomers[new].request_id for new in self.new_index[chosen] if new >= 0}
        return accepted, value, running

    def feasible(self, chosen: BoolArray) -> bool:
        """Whether a set is feasible under the same chained PB*."""
        return chain_feasible(
            chosen,
            self.deadline,
            self.tokens,
            self.memory,
            self.tier,
            self.tiers,
            self.decoding,
            self.free_memory,
            self.lines,
            self.max_tokens,
        )

    def greedy(self) -> BoolArray:
        """Take new requests in deadline order while the whole set stays feasible."""
        chosen = self.forced.copy()
        for item in np.flatnonzero(~self.forced):
            chosen[item] = True
            if not self.feasible(chosen):
                chosen[item] = False
        return chosen


def build_tiers(
    now_s: float,
    table: RequestTable,
    free_blocks: int,
    model: TimeModel,
    limits: EngineLimits,
    newcomers: Sequence[Newcomer],
) -> TierProblem:
    """Set the problem up; at most MAX_NEW newcomers, the first by deadline, are expected.

    The tier of a decode that runs far ahead of its deadline is re-derived from its slack: it counts in the loosest
    tier that its slack covers. Where the engine speculates, tiers are those of steps that verify drafts: as many TPOTs
    as tokens are counted on, and their drafts are in the time of a request.
    """
    used = table.high_water
    bare = model.array / model.margin
    slots, kept, _ = keep_promised(
        table.ints,
        table.floats,
        table.flags,
        used,
        now_s,
        bare,
        float(limits.max_batch_tokens),
        np.empty(bare.shape[0]),
    )
    lines, requests = model.array, float((kept[REM] == 0).sum())
    state = np.concatenate([kept, columns_of(newcomers).T], axis=1)
    if limits.max_spec_tokens > 1 and table.accept_rate[slots].any():
        caps = np.full(CAPS, PaperBatching().cap_s(model))
        lines = counted_on(slots, state, table.floats, lines, caps, limits.max_spec_tokens)
        # Whole multiples of the tightest: windows of two tiers that hardly differ would leave no time between them.
        tightest_s = state[PACE].min()
        state[PACE] = tightest_s * np.floor(state[PACE] / tightest_s + 1e-9)
        kept = state[:, : len(slots)]
        requests += len(newcomers)
    paces = state[PACE]
    tiers = np.unique(paces)
    decodes = kept[REM] == 0
    slack = kept[DUE, decodes] - now_s
    own = np.searchsorted(tiers, kept[PACE, decodes])
    covered = np.searchsorted(tiers, slack, side="right") - 1
    decoding = np.bincount(np.maximum(own, covered), minlength=len(tiers)).astype(np.int64)
    running = np.flatnonzero(~decodes)
    block = limits.block_size

    def growth(resident: FloatArray, held: FloatArray) -> FloatArray:
        return np.maximum(np.ceil(resident / block) - held, 0.0)

    final = kept[CTX] + kept[REM] + kept[OUT]
    grown = growth(final, table.kv_blocks[slots].astype(np.float64))
    deadline = np.concatenate([np.maximum(kept[DUE, running], now_s), [new.due_s for new in newcomers]]) - now_s
    tokens = np.concatenate([kept[REM, running], [float(new.rem) for new in newcomers]])
    held = [float(table.kv_blocks[new.slot]) if new.slot >= 0 else 0.0 for new in newcomers]
    need = growth(np.array([float(new.ctx + new.rem + new.out) for new in newcomers]), np.array(held))
    memory = np.concatenate([grown[running], need])
    value = np.concatenate([np.zeros(len(running)), [new.value for new in newcomers]])
    new_index = np.concatenate([np.full(len(running), -1), np.arange(len(newcomers))]).astype(np.int64)
    pace = np.concatenate([paces[running], paces[len(slots) :]])
    rank = np.lexsort((new_index, deadline))
    best_effort = table.active[:used] & ~table.standard[:used]
    preemptible = float(table.kv_blocks[:used][best_effort].sum()) - sum(held)
    contexts = np.concatenate([kept[CTX, running], [float(new.ctx) for new in newcomers]])
    mean_context = float(np.mean(contexts + tokens / 2)) if len(tokens) else 0.0
    return TierProblem(
        deadline=np.maximum(deadline[rank], 0.0),
        tokens=tokens[rank],
        memory=memory[rank],
        value=value[rank],
        tier=np.searchsorted(tiers, pace[rank]).astype(np.int64),
        forced=new_index[rank] < 0,
        new_index=new_index[rank],
        tiers=tiers,
        decoding=decoding,
        free_memory=free_blocks + preemptible - float(grown[decodes].sum()),
        lines=token_lines(lines, float(kept[CTX, decodes].sum()), requests, mean_context),
        max_tokens=float(limits.max_batch_tokens),
    )
