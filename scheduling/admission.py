"""The admission problem of one replica, as arrays, and its exact oracle: what every admission policy works on.

Residents that were promised stay; candidates join while the simulated batches keep every promise, the KV that all
will need when they have grown fits, and all can decode side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduling.batch_settings import BatchSettings
from scheduling.kernels import rollout
from scheduling.kernels.labels import label_search
from scheduling.kernels.problem import ask_for_one, set_up
from scheduling.kernels.search import all_at_once, greedy
from scheduling.kernels.spare import leaves_enough
from scheduling.newcomers import Newcomer, columns_of
from scheduling.request_table import BoolArray, FloatArray, IntArray, RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits

Verdict = tuple[int, int, float, float]
"""(verdict, column that binds, seconds until prefills are done, peak blocks) of a set of newcomers."""
Answer = tuple[int, int, float, float, int, float]
"""(verdict, who binds, seconds until prefills are done, peak blocks, residents, blocks that the plan may use)."""


@dataclass(slots=True)
class Problem:
    """One replica's residents and the newcomers, ready for the kernels.

    items: the newcomers' columns, ascending. of_all: verdict on all of them together, as `check` gives it.
    """

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
    of_all: Verdict

    def check(self, chosen: BoolArray) -> Verdict:
        """Verdict on a set of newcomers."""
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
        fewer = replace(
            self,
            newcomers=[new for new, yes in zip(self.newcomers, items, strict=True) if yes],
            items=self.items[items],
            item_rem=self.item_rem[items],
            item_value=self.item_value[items],
            item_position=self.item_position[items],
        )
        fewer.of_all = fewer.check(np.ones(len(fewer.items), dtype=np.bool_))
        return fewer

    def leaves_enough(self, table: RequestTable, shares: FloatArray, all_done_s: float) -> BoolArray:
        """Which newcomers leave enough free for requests to come: see kernels.spare."""
        return leaves_enough(
            self.state,
            self.residents,
            table.ints,
            table.floats,
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
    if len(newcomers) > 1:
        newcomers = sorted(newcomers, key=lambda new: (new.rem > 0, new.due_s, new.request_id))
    residents, state, order, rank, items, item_rem, item_position, lines, caps, capacity_blocks, of_all = set_up(
        *_arguments(now_s, table, free_blocks, model, limits, settings, best_effort_floor, beside_hopeful),
        columns_of(newcomers),
    )
    return Problem(
        now_s=now_s,
        newcomers=list(newcomers),
        residents=residents,
        state=state,
        order=order,
        rank=rank,
        items=items,
        item_rem=item_rem,
        item_value=np.array([new.value for new in newcomers], dtype=np.float64),
        item_position=item_position,
        lines=lines,
        caps=caps,
        limits=limits,
        capacity_blocks=capacity_blocks,
        of_all=of_all,
    )


def ask_alone(
    now_s: float,
    table: RequestTable,
    free_blocks: int,
    model: TimeModel,
    limits: EngineLimits,
    new: Newcomer,
    settings: BatchSettings,
    best_effort_floor: float,
    beside_hopeful: bool,
    shares: FloatArray,
    explains: bool,
) -> Answer:
    """Whether one newcomer can come, as a Problem would say it, without setting one up.

    shares, explains: see kernels.problem.ask_for_one; the others as in build.
    """
    return ask_for_one(
        *_arguments(now_s, table, free_blocks, model, limits, settings, best_effort_floor, beside_hopeful),
        shares,
        explains,
        float(new.rem),
        float(new.due_s),
        float(new.pace_s),
        float(new.ctx),
        float(new.out),
        float(new.value),
    )


def _arguments(
    now_s: float,
    table: RequestTable,
    free_blocks: int,
    model: TimeModel,
    limits: EngineLimits,
    settings: BatchSettings,
    best_effort_floor: float,
    beside_hopeful: bool,
) -> tuple[
    IntArray, FloatArray, BoolArray, int, float, int, FloatArray, float, FloatArray, float, bool, float, float, float,
    int,
]:  # fmt: skip
    """A replica and how plans are made there, as kernels.problem takes it."""
    return (
        table.ints,
        table.floats,
        table.flags,
        table.high_water,
        now_s,
        free_blocks,
        model.array,
        model.margin,
        settings.array,
        best_effort_floor,
        beside_hopeful,
        float(limits.max_batch_tokens),
        float(limits.max_batch_requests),
        float(limits.block_size),
        limits.max_spec_tokens,
    )


def who_binds(problem: Problem, item: int, bind: int, table: RequestTable) -> str:
    """Whose deadline a column stands for where a newcomer is declined, for people; empty for nobody's."""
    n = len(problem.residents)
    if bind < 0:
        return ""
    if bind < n:
        return f"request {table.request_id(int(problem.residents[bind]))}"
    other = problem.newcomers[int(np.searchsorted(problem.items, bind))]
    return "this request" if other is problem.newcomers[item] else f"request {other.request_id}, due earlier"


def reason(new: Newcomer, verdict: int, who: str, now_s: float, limits: EngineLimits, capacity_blocks: float) -> str:
    """Why a newcomer is not promised anything, for people; who: whose deadline binds."""
    if verdict == rollout.TOO_LARGE:
        return (
            f"its {new.rem} prompt tokens and {_blocks(new, limits)} blocks of KV memory are more than others need, "
            "and would leave too little free for those to come; wait, or shorten the prompt or max_tokens"
        )
    if verdict == rollout.NO_MEMORY:
        return (
            f"KV memory: with the {_blocks(new, limits)} blocks this request will need, the peak exceeds "
            f"{int(capacity_blocks)} blocks; wait, or lower max_tokens"
        )
    if verdict == rollout.OVERLOAD:
        return (
            "the engine cannot decode all promised requests at their TPOT with this one among them; use a looser TPOT"
        )
    if verdict == rollout.TOO_MANY:
        return f"the engine runs at most {limits.max_batch_requests} requests at once; wait for one to finish"
    if verdict == rollout.LATE_DECODE:
        return f"{who} would get a token late: no time is left for this prompt; use a looser TPOT or wait"
    return (
        f"{who} would get its first token late: {new.rem} prompt tokens are due in {1000 * (new.due_s - now_s):.0f} ms "
        "behind work already promised; use a looser TTFT or wait"
    )


def _blocks(new: Newcomer, limits: EngineLimits) -> int:
    return -(-(new.ctx + new.rem + new.out) // limits.block_size)
