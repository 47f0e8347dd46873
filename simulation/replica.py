"""One simulated replica: a request table, KV memory, and steps that follow the policy's plan."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from scheduling.policy import NOTHING_CACHED, BatchPolicy, ReplicaView
from scheduling.request_table import IntArray, RequestTable
from scheduling.time_model import TimeModel
from simulation import engine_step, planned_run
from simulation.decode_run import execute_decodes
from simulation.noise import StepNoise
from simulation.prefix_cache import PrefixCache
from simulation.profiles import Profile
from simulation.requests import Requests
from simulation.workload import Workload

UNBOUNDED = 1 << 62


class Step(NamedTuple):
    """A step under way: its tokens appear when it ends; finished and handed-over rows have left the table.

    rows: of its tokens, emitted[1] each. emitted is the replica's own array, which its next step writes to.
    """

    replica: int
    number: int
    ends_s: float
    rows: IntArray
    emitted: IntArray
    finished_rows: tuple[int, ...]


class Undisturbed(NamedTuple):
    """How far a replica may go before anybody else has a word.

    until_s: the first step that ends after it is the last. room_below: stop once fewer best-effort requests than this
    have yet to start (0: go on). estimated_every: estimates of lengths are corrected after every so many steps
    (0: never). repeats_decodes: see Policy. in_one_call: plan and run in one compiled call where there is one for the
    policy; every number is the same.
    """

    until_s: float
    room_below: int = 0
    estimated_every: int = 0
    repeats_decodes: bool = False
    in_one_call: bool = True


class Replica:
    """State of one engine.

    The table is moved when a step starts and stands for the moment when it ends (`busy_until_s`): whoever plans
    during a step plans for the next one, which is the first that a new request could join.
    """

    def __init__(
        self, index: int, role: str, profile: Profile, planner_model: TimeModel, noise: StepNoise, seed: int, spec: bool
    ) -> None:
        """An empty, idle replica."""
        self.index = index
        self._name = str(index)
        self.role = role
        self.limits = profile.limits
        self.planner_model = planner_model
        self.table = RequestTable()
        self.free_blocks = profile.limits.total_blocks
        self.cache = PrefixCache(profile.limits.block_size)
        self.alive = True
        self.busy_until_s = 0.0
        self.expected_end_s = 0.0
        self.step: Step | None = None
        self.steps = 0
        self.counters: IntArray = np.zeros(engine_step.COUNTERS, np.int64)
        self.busy_s = 0.0
        self._lines = profile.time_model.with_margin(1.0).array
        self.acceptance = profile.spec_acceptance if spec else 0.0
        self._noise = noise
        self._seed = np.array([seed * 1_000_003 + index + 1], np.uint64)
        self._side: IntArray = np.zeros((engine_step.SIDE_ROWS, len(self.table.active)), np.int64)
        self._emitted: IntArray = np.zeros((2, len(self.table.active)), np.int64)
        self._finished: IntArray = np.zeros(len(self.table.active), np.int64)
        self._next_round_after_s: float | None = None
        self._unstarted: int | None = None
        self._packed: planned_run.Packed | None = None
        self._packed_for: tuple[BatchPolicy, TimeModel] | None = None
        self._hoping: set[int] = set()
        self._engine: engine_step.Engine | None = None

    @property
    def busy(self) -> bool:
        """A step is under way."""
        return self.step is not None

    def view(self, cached_tokens: dict[str, int] | None = None, as_of_s: float = -math.inf) -> ReplicaView:
        """What routing and admission take."""
        return ReplicaView(
            self._name,
            self.table,
            self.free_blocks,
            self.planner_model,
            self.limits,
            self.role,
            cached_tokens or NOTHING_CACHED,
            as_of_s,
        )

    def unstarted(self) -> int:
        """Best-effort requests without hope of which nothing has been computed."""
        if self._unstarted is None:
            self._unstarted = planned_run.unstarted(self.table.ints, self.table.flags, self.table.high_water)
        return self._unstarted

    def promise(self, slot: int) -> None:
        """Make a promise to a request that is here."""
        self.table.standard[slot] = True
        self._unstarted = None

    def planning_time_s(self, now_s: float) -> float:
        """The moment that the table stands for, as a planner would predict it."""
        return max(now_s, self.expected_end_s) if self.busy else now_s

    def track(self, slot: int, row: int, output_left: int, thinking_left: int) -> None:
        """Attach what only the simulator knows to a slot of the table."""
        if slot >= self._side.shape[1]:
            self._engine = self._packed_for = None
            grown = np.zeros((engine_step.SIDE_ROWS, len(self.table.active)), np.int64)
            grown[:, : self._side.shape[1]] = self._side
            self._side = grown
            self._emitted = np.zeros((2, len(self.table.active)), np.int64)
            self._finished = np.zeros(len(self.table.active), np.int64)
        self._side[:, slot] = (row, output_left, thinking_left)
        if self.table.hopeful[slot]:
            self._hoping.add(slot)
        self._next_round_after_s = self._unstarted = None

    def next_round_after_s(self, workload: Workload) -> float:
        """Least time between the end of a request that is here and its session's next one; infinite without."""
        if self._next_round_after_s is None:
            rows = self._side[engine_step.ROW, : self.table.high_water][self.table.active[: self.table.high_water]]
            ending = self.step.finished_rows if self.step is not None else ()
            following = workload.next_row[np.concatenate([rows, np.array(ending, np.int64)])]
            self._next_round_after_s = float(workload.tool_delay_s[following[following >= 0]].min(initial=math.inf))
        return self._next_round_after_s

    def row_of(self, slot: int) -> int:
        """Workload row in a slot."""
        return int(self._side[engine_step.ROW, slot])

    def output_left(self, slot: int) -> int:
        """Output tokens that the request in a slot will still produce."""
        return int(self._side[engine_step.LEFT, slot])

    def thinking_left(self, slot: int) -> int:
        """Output tokens until the request in a slot stops thinking."""
        return int(self._side[engine_step.THINKING, slot])

    def begin_step(
        self, now_s: float, batching: BatchPolicy, requests: Requests, leave: Undisturbed
    ) -> tuple[Step, list[int]] | None:
        """Plan and run one step; returns it with the slots whose output is complete, or None when nothing can run.

        While nobody else has a word, steps are run in one go, and the step returned is the last of them.
        """
        together = now_s < leave.until_s and self._noise.none
        self._unstarted = None
        engine = self._engine or self._engine_for(requests)
        packed = self._packed_with(engine, batching, requests) if leave.in_one_call else None
        if packed is not None:
            # Prompts leave a prefill replica step by step, and a decode replica takes them in as soon as it has room.
            alone = together and self.role == "both"
            most_steps, unestimated = self._until_corrected(leave.estimated_every)
            began, end, predicted_s, steps, rows, done, free, fewest, self._unstarted = planned_run.run_planned(
                now_s,
                leave.until_s if alone else now_s,
                self._noise.draw(),
                most_steps,
                unestimated,
                leave.room_below,
                self.free_blocks,
                self.table.high_water,
                packed,
            )
        else:
            plan = batching.plan(now_s, self.table, self.free_blocks, self.planner_model, self.limits)
            predicted_s = plan.predicted_s
            only_decodes = len(plan.decode_slots) == len(self.table) and not len(plan.relegate_slots)
            if together and only_decodes and leave.repeats_decodes:
                began, end, steps, emissions, done, free = execute_decodes(
                    now_s,
                    leave.until_s,
                    self.free_blocks,
                    engine,
                    requests.tokens,
                    plan.decode_slots,
                    plan.spec_tokens,
                )
            else:
                began, steps = now_s, 1
                end, emissions, done, free = engine_step.execute(
                    now_s,
                    self._noise.draw(),
                    self.free_blocks,
                    engine,
                    plan.decode_slots,
                    plan.spec_tokens,
                    plan.prefill_slots,
                    plan.prefill_tokens,
                    plan.preempt_slots,
                    plan.relegate_slots,
                )
            fewest, rows = free, self._side[engine_step.ROW, self._emitted[0, :emissions]]
        if free < 0:
            raise AssertionError(f"replica {self.index} holds more KV blocks than it has")
        self.free_blocks = free
        if end <= now_s:
            return None
        self.steps += steps
        self.busy_s += end - now_s
        self.busy_until_s = end
        self.expected_end_s = began + predicted_s
        if self.cache.total_blocks > fewest:
            self.cache.shrink_to(fewest)
        finished: list[int] = self._finished[:done].tolist()
        ended = tuple(self.row_of(slot) for slot in finished) if done else ()
        self.step = Step(self.index, self.steps, end, rows, self._emitted, ended)
        return self.step, finished

    def _packed_with(
        self, engine: engine_step.Engine, batching: BatchPolicy, requests: Requests
    ) -> planned_run.Packed | None:
        """What run_planned takes, if it can plan so; kept while policy, time model and engine stay the same."""
        model, known = self.planner_model, self._packed_for
        if known is None or known[0] is not batching or known[1] is not model:
            planner = planned_run.planner(batching, model, self.limits)
            self._packed = None if planner is None else planned_run.pack(planner, engine, requests.tokens)
            self._packed_for = batching, model
        return self._packed

    def _until_corrected(self, every: int) -> tuple[int, bool]:
        """Steps that may run in one go, and whether the first of them is one after which estimates are corrected.

        What other replicas teach about lengths must be known when estimates are corrected: such a step comes first.
        """
        if not every:
            return UNBOUNDED, False
        to_go = every - 1 - self.steps % every
        return (to_go, False) if to_go else (every, True)

    def _engine_for(self, requests: Requests) -> engine_step.Engine:
        """What steps run on; kept until the arrays of the table are others."""
        table = self.table
        self._engine = engine_step.Engine(
            self._lines,
            self.limits.block_size,
            self.acceptance,
            table.ints,
            table.floats,
            table.flags,
            self._side,
            self._seed,
            self._emitted,
            self._finished,
            requests.late,
            self.counters,
        )
        return self._engine

    @property
    def may_give_back(self) -> bool:
        """A hopeful request has yet to begin here."""
        return bool(self._hoping)

    def given_up(self) -> list[int]:
        """Slots of hopeful requests that were given up before anything of them was computed; asked after every step."""
        if not self._hoping:
            return []
        table, lost = self.table, []
        for slot in sorted(self._hoping):
            if table.standard[slot] or table.context[slot] > 0:
                self._hoping.discard(slot)
            elif not table.hopeful[slot]:
                lost.append(slot)
        return lost

    def preempt(self, slot: int) -> None:
        """Take a request's KV; it starts over."""
        self.free_blocks += int(self.table.kv_blocks[slot])
        self.table.preempted(slot)
        self._unstarted = None

    def release(self, slot: int) -> int:
        """Take a request out of the table; returns the KV blocks it held, which are free again."""
        self._next_round_after_s = self._unstarted = None
        self._hoping.discard(slot)
        blocks = int(self.table.kv_blocks[slot])
        self.table.remove(self.table.request_id(slot))
        self.free_blocks += blocks
        return blocks

    def lose(self) -> list[int]:
        """Die: everything in memory is gone; returns the workload rows that were here, in order of slots."""
        rows = [self.row_of(int(slot)) for slot in self.table.slots()]
        if self.step is not None:
            rows.extend(self.step.finished_rows)
        self.alive = False
        self.step = None
        self._next_round_after_s = self._unstarted = None
        self.table = RequestTable(len(self.table.active))
        self._engine = self._packed_for = None
        self._hoping.clear()
        self.free_blocks = self.limits.total_blocks
        self.cache.clear()
        return rows
