"""Many engine steps in a row, each planned by our own batches: one call in place of one event per step.

The run ends with the first step after which anybody else has a word: the cluster's next event is due, a request
finished or goes back to the controller, nothing could run, or a best-effort request that waits there finds room. Every
number is the same as with single steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from scheduling.batching import DeadlineBatching
from scheduling.kernels.jit import kernel
from scheduling.kernels.paper_step import plan_paper_step
from scheduling.kernels.step import plan_step
from scheduling.paper_batching import PaperBatching
from scheduling.policy import BatchPolicy
from scheduling.request_table import (
    ACTIVE,
    CONTEXT,
    HOPEFUL,
    REMAINING_OUTPUT,
    STANDARD,
    BoolArray,
    FloatArray,
    IntArray,
)
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits
from simulation.engine_step import ROW, Engine, Tokens, deliver, execute


class Planner(NamedTuple):
    """How batches are planned: the rule's settings, its longest batch where it is the paper's (0: ours), and limits."""

    settings: FloatArray
    longest_s: float
    lines: FloatArray
    margin: float
    max_tokens: float
    max_requests: float
    total_blocks: int
    max_spec: int


Packed = tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]
"""The fields of a Planner, an Engine and Tokens. Of a named tuple the class is looked up at every call from Python,
which takes longer than to hand all its fields over."""


def pack(planner: Planner, engine: Engine, tokens: Tokens) -> Packed:
    """What run_planned plans by, runs on and writes to."""
    return tuple(planner), tuple(engine), tuple(tokens)


def planner(batching: BatchPolicy, model: TimeModel, limits: EngineLimits) -> Planner | None:
    """The planner of run_planned that plans as this policy does; None where there is none."""
    if isinstance(batching, DeadlineBatching):
        longest_s = 0.0
    elif isinstance(batching, PaperBatching):
        longest_s = batching.cap_s(model)
    else:
        return None
    return Planner(
        batching.settings.array,
        longest_s,
        model.array,
        model.margin,
        float(limits.max_batch_tokens),
        float(limits.max_batch_requests),
        limits.total_blocks,
        limits.max_spec_tokens,
    )


@kernel
def run_planned(
    now: float,
    until: float,
    factor: float,
    most_steps: int,
    unestimated: bool,
    room_below: int,
    free: int,
    used: int,
    packed: Packed,
) -> tuple[float, float, float, int, IntArray, int, int, int, int]:
    """Steps from now on, at most most_steps; the tokens of all but the last are delivered.

    factor: by how much steps take longer than their true model says (noise, where they are run one by one).
    unestimated: end with the first step if it leaves a request that was expected to have finished. room_below: end once
    fewer best-effort requests than this have yet to start (0: whatever they do). used: the table's high water.

    Returns start, end and predicted duration of the last step, the count of steps, the workload rows of the last one's
    tokens, its finished slots, and free blocks; the fewest blocks that were free after any step; last, the requests
    that `unstarted` counts.
    """
    planner, engine, tokens = Planner(*packed[0]), Engine(*packed[1]), Tokens(*packed[2])
    ints, floats, flags = engine.ints, engine.floats, engine.flags
    steps = 0
    fewest = free
    while True:
        if planner.longest_s > 0.0:
            decodes, verified, prefills, chunks, preempted, relegated, predicted = plan_paper_step(
                ints, floats, flags, used, now, free, planner.lines, planner.margin, planner.settings,
                planner.longest_s, planner.max_tokens, planner.max_requests, engine.block, planner.total_blocks,
                planner.max_spec,
            )  # fmt: skip
        else:
            decodes, verified, prefills, chunks, preempted, relegated, predicted = plan_step(
                ints, floats, flags, used, now, free, planner.lines, planner.margin, planner.settings,
                planner.max_tokens, planner.max_requests, engine.block, planner.total_blocks, planner.max_spec,
            )  # fmt: skip
        end, emissions, done, free = execute(
            now, factor, free, engine, decodes, verified, prefills, chunks, preempted, relegated
        )
        fewest = min(fewest, free)
        rows = engine.side[ROW][engine.emitted[0, :emissions]]
        if end <= now:
            break
        steps += 1
        if end >= until or done > 0 or steps >= most_steps or _gives_back(ints, relegated):
            break
        if steps == 1 and unestimated and _overran(ints, flags, used):
            break
        if room_below > 0 and unstarted(ints, flags, used) < room_below:
            break
        deliver(end, engine.emitted, rows, tokens.times, tokens.offsets, tokens.produced)
        now = end
    return now, end, predicted, steps, rows, done, free, fewest, unstarted(ints, flags, used)


@kernel
def _gives_back(ints: IntArray, relegated: IntArray) -> bool:
    """Some request that was given up has not begun."""
    return bool((ints[CONTEXT][relegated] == 0).any())


@kernel
def _overran(ints: IntArray, flags: BoolArray, used: int) -> bool:
    """Some request has as many output tokens as were expected of it, and goes on."""
    return bool((flags[ACTIVE, :used] & (ints[REMAINING_OUTPUT, :used] <= 1)).any())


@kernel
def unstarted(ints: IntArray, flags: BoolArray, used: int) -> int:
    """Best-effort requests without hope of which nothing has been computed."""
    count = 0
    for slot in range(used):
        if flags[ACTIVE, slot] and not (flags[STANDARD, slot] or flags[HOPEFUL, slot]) and ints[CONTEXT, slot] == 0:
            count += 1
    return count
