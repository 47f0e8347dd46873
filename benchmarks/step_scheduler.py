"""What the step scheduler adds to vLLM's own scheduler, per engine step: the same requests through both, step by step.

vLLM's real queues and KV blocks, without a model. All schedulers hold the same number of running requests all the
time; after every step of the one comes a step of the next, and differences within such a round are the samples. Counted
is all of schedule() and update_from_output(): the policy's plan, its carrying out, and the record that is sent.

vLLM has two schedulers: the asynchronous one, which it uses on GPUs and which the step scheduler extends, and a plain
one for engines that wait for every step, as on CPUs. Differences are given against both. Their tails also hold what the
schedulers did differently in a round, since a prompt that begins costs more than a decode; so the time that passes
in the step scheduler's own code is given too, as it is measured in every step of a real engine.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import common
from benchmarks.planner import MODEL
from engine.vllm.bare_scheduler import VLLM_SCHEDULERS, BareScheduler
from engine.vllm.config import VllmConfig
from engine.vllm.messages import StepRecord
from engine.vllm.step_scheduler import StepScheduler
from loadtest.own_cluster import model_folder
from scheduling.compile import warm_up

_BLOCK_TOKENS = 16
_TPOTS_S = (0.05, 0.075, 0.1, 0.15)
_WARM_UP_STEPS = 50


class Timed(StepScheduler):
    """Keeps what each step's record says of the time that it took beside vLLM's own, seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See StepScheduler."""
        self.own_s: list[float] = []
        super().__init__(*args, **kwargs)

    def _send(self, record: StepRecord) -> None:
        super()._send(record)
        if record.batch_tokens:
            self.own_s.append(record.overhead_s)


class Refilled:
    """A scheduler that always has `running` requests: where one ends, the next of a seeded series comes."""

    def __init__(self, bare: BareScheduler, running: int, seed: int) -> None:
        """Fill it."""
        self.bare = bare
        self._running = running
        self._random = random.Random(seed)
        self._sent = 0
        self._refill()

    def step_ms(self) -> float:
        """Time of one step; what has ended is replaced after it."""
        self.bare.step()
        self._refill()
        return self.bare.step_s * 1e3

    def _refill(self) -> None:
        while self._sent - len(self.bare.finished) < self._running:
            draw = self._random
            prompt = [draw.randrange(100, 1000) for _ in range(draw.randint(32, 400))]
            self.bare.add(f"r{self._sent}", prompt, draw.randint(50, 400), tpot_s=draw.choice(_TPOTS_S))
            self._sent += 1


def added(model: Path, running: int, steps: int, policy: str) -> dict[str, Any]:
    """Quantiles of vLLM's own times, of ours and of the differences within rounds, milliseconds."""
    config = VllmConfig(
        model_dir=model,
        max_model_len=1024,
        max_num_seqs=running,
        policy=policy,
        time_model_json=MODEL.to_json(),
    )
    blocks = running * (1024 // _BLOCK_TOKENS) + 1
    sides: list[Refilled] = []
    times: list[list[float]] = [[], [], []]
    try:
        for kind in (*VLLM_SCHEDULERS, Timed):
            bare = BareScheduler(config, blocks, _BLOCK_TOKENS, scheduler_class=kind)
            sides.append(Refilled(bare, running, seed=running))
        for number in range(-_WARM_UP_STEPS, steps):
            if number == 0:
                # As both do in an engine: a collection of long-lived objects is not a step's work.
                gc.collect()
                gc.freeze()
            for side, found in zip(sides, times, strict=True):
                took = side.step_ms()
                if number >= 0:
                    found.append(took)
    finally:
        gc.unfreeze()
        for side in sides:
            side.bare.close()
    own_ms = [seconds * 1e3 for seconds in sides[-1].bare.scheduler.own_s[-steps:]]
    return {
        "own_code_ms": common.quantiles(own_ms),
        "vllm_plain_ms": common.quantiles(times[0]),
        "vllm_ms": common.quantiles(times[1]),
        "step_scheduler_ms": common.quantiles(times[2]),
        "added_ms": common.quantiles([ours - own for _, own, ours in zip(*times, strict=True)]),
        "added_to_plain_ms": common.quantiles([ours - plain for plain, _, ours in zip(*times, strict=True)]),
    }


def measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """One row per number of running requests."""
    steps = 200 if given.quick else given.steps
    warm_up((given.policy,))
    model = model_folder()
    rows = {f"{running} running": added(model, running, steps, given.policy) for running in (16, 64, 256)}
    return {"policy": given.policy, "steps": steps}, rows


def show(whole: common.Result) -> None:
    """Print the result for people."""
    sides = ("vllm_ms", "step_scheduler_ms", "added_ms", "own_code_ms")
    columns = ("", "vLLM p50, ms", "p99", "step scheduler p50", "p99", "added p50", "p99", "own code p50", "p99")
    table = Table(*columns, title="Scheduler time per step", title_justify="left")
    for name, row in whole["result"].items():
        table.add_row(name, *(f"{row[side][q]:.3f}" for side in sides for q in ("p50", "p99")))
    common.console().print(table)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=3000, help="pairs of steps")
    parser.add_argument("--policy", default="slos")


if __name__ == "__main__":
    sys.exit(common.main("step-scheduler", __doc__, measure, show, _add_arguments))
