"""Time of the planner.

Per admission decision at 10/100/500 running and 1/10/50 new requests with 2 and 4 TPOT tiers; per step plan at 64 and
256 running; per placement of a request over 64 replicas; and what the default number of labels costs in value against
unlimited labels. Wall-clock times of this machine, in milliseconds; kernels are compiled before anything is timed.
Decisions have the p99 of their CPU time too: on a busy machine the wall clock measures the neighbours.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import common
from scheduling import registry, routing
from scheduling.compile import warm_up
from scheduling.policy import Policy, ReplicaView
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import Candidate, EngineLimits, Slo

MODEL = TimeModel(((0.020, 2.0e-5, 2.0e-5, 1.0e-8, 5e-10, 0.0), (0.012, 2.6e-5, 2.0e-5, 1.0e-8, 5e-10, 0.0)))
"""A fast GPU: 500 decodes at 50 ms are sustainable, as the larger sizes need."""
LIMITS = EngineLimits(8192, 1024, 16, 60_000, 16_384)
TIERS = {2: (0.05, 0.1), 4: (0.05, 0.075, 0.1, 0.15)}
RUNNING, NEW = (10, 100, 500), (1, 10, 50)
LABELS = {"default": 128, "greedy": 0, "unlimited": 1 << 13}
LABEL_CASES = ((100, 10, 3), (500, 10, 3), (500, 50, 10))
"""Running, new, and by how much fewer bursts there are than decisions per figure: unlimited search is slow."""
TARGETS_MS = {"admission 100+10": 1.0, "admission 500+50": 10.0, "step 64": 1.0, "step 256": 0.3, "place 64": 2.0}


def replica(rng: np.random.Generator, running: int, tiers: Sequence[float]) -> RequestTable:
    """Build a replica in mid-flight: decodes at random phases, one in fifty still in prefill, some best effort."""
    table = RequestTable(max(64, running))
    for k in range(running):
        prompt, generated = int(rng.integers(20, 1500)), int(rng.integers(1, 200))
        in_prefill = k % 50 == 7
        tpot = float(rng.choice(tiers))
        table.add(
            f"r{k}",
            prompt_tokens=prompt,
            generated=0 if in_prefill else generated,
            context=0 if in_prefill else prompt + generated - 1,
            prefill_deadline_s=float(0.3 + rng.random()),
            next_deadline_s=float(0.04 + tpot * (0.2 + 2 * rng.random())),
            tpot_s=tpot,
            standard=k % 20 != 3,
            remaining_output=int(rng.integers(1, 300)),
            kv_blocks=0 if in_prefill else -(-(prompt + generated) // LIMITS.block_size),
        )
    return table


def newcomers(rng: np.random.Generator, count: int, tiers: Sequence[float]) -> list[Candidate]:
    """Make a burst: together it is more than can be served in time, so that the search has something to do."""
    return [
        Candidate(
            f"n{k}",
            0.0,
            int(rng.integers(100, 3000)),
            Slo(float(0.2 + rng.random()), float(rng.choice(tiers))),
            int(rng.integers(10, 300)),
            600,
            value=float(rng.choice([1.0, 2.0, 5.0])),
        )
        for k in range(count)
    ]


def timed(action: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    action()
    return 1000.0 * (time.perf_counter() - started)


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median, p99 and maximum."""
    p50, p99 = (float(q) for q in np.quantile(samples, (0.5, 0.99)))
    return {"n": len(samples), "p50_ms": round(p50, 4), "p99_ms": round(p99, 4), "max_ms": round(max(samples), 4)}


def admission(policy: Policy, running: int, new: int, tiers: Sequence[float], rounds: int) -> dict[str, float]:
    """Time decisions on fresh random replicas."""
    rng = np.random.default_rng(running * 1000 + new)
    samples, on_cpu, accepted, labels = [], [], 0, []
    for _ in range(rounds):
        table, candidates = replica(rng, running, tiers), newcomers(rng, new, tiers)
        started, cpu = time.perf_counter(), time.thread_time()
        decision = policy.admission.decide(0.0, table, 30_000, MODEL, LIMITS, candidates)
        samples.append(1000.0 * (time.perf_counter() - started))
        on_cpu.append(1000.0 * (time.thread_time() - cpu))
        accepted += len(decision.accepted)
        labels.append(int(str(decision.explain.get("labels", 0))))
    cpu_p99_ms = round(float(np.quantile(on_cpu, 0.99)), 4)
    figures = {**summary(samples), "cpu_p99_ms": cpu_p99_ms, "accepted_mean": accepted / rounds}
    return {**figures, "labels_max": float(max(labels))}


def steps(policy: Policy, running: int, rounds: int) -> dict[str, float]:
    """Time step plans."""
    rng = np.random.default_rng(running)
    tables = [replica(rng, running, TIERS[4]) for _ in range(20)]
    samples = [
        timed(lambda: policy.batching.plan(0.0, tables[k % 20], 30_000, MODEL, LIMITS))  # noqa: B023
        for k in range(rounds)
    ]
    return summary(samples)


def placement(policy: Policy, name: str, replicas: int, rounds: int) -> dict[str, float]:
    """Time the way of one request over a fleet: order the replicas, ask them one by one, at most the policy's limit."""
    rng = np.random.default_rng(replicas)
    views = [ReplicaView(f"{k}", replica(rng, 50, TIERS[2]), 30_000, MODEL, LIMITS) for k in range(replicas)]
    chosen = routing.get(name)
    samples, asked = [], 0
    for _ in range(rounds):
        candidate = newcomers(rng, 1, TIERS[2])[0]
        started = time.perf_counter()
        for index in chosen.order(0.0, candidate, views):
            asked += 1
            view = views[index]
            if policy.admission.decide(
                0.0, view.table, view.free_blocks, view.model, view.limits, [candidate]
            ).accepted:
                break
        samples.append(1000.0 * (time.perf_counter() - started))
    return {**summary(samples), "asked_mean": asked / rounds}


def label_value(running: int, new: int, rounds: int) -> dict[str, float]:
    """Value of the default search, and of none, as a share of that with unlimited labels."""
    policies = {name: registry.get("slos", max_labels=labels) for name, labels in LABELS.items()}
    rng = np.random.default_rng(running * 1000 + new)
    got = dict.fromkeys(policies, 0.0)
    ran_out = 0
    for _ in range(rounds):
        table, candidates = replica(rng, running, TIERS[4]), newcomers(rng, new, TIERS[4])
        worth = {c.request_id: c.value for c in candidates}
        for name, policy in policies.items():
            decision = policy.admission.decide(0.0, table, 30_000, MODEL, LIMITS, candidates)
            got[name] += sum(worth[request_id] for request_id in decision.accepted)
            ran_out += name == "default" and bool(decision.explain.get("labels_ran_out"))
    return {
        "share_of_unlimited": got["default"] / max(got["unlimited"], 1e-9),
        "greedy_share_of_unlimited": got["greedy"] / max(got["unlimited"], 1e-9),
        "ran_out": ran_out / rounds,
        "bursts": rounds,
    }


def run(rounds: int) -> dict[str, Any]:
    """Measure everything; rounds: decisions per figure."""
    warm_up()
    report: dict[str, Any] = {}
    gc.collect()
    gc.freeze()
    for name in ("slos", "dp", "edf-exact"):
        policy = registry.get(name)
        report[f"admission {name}"] = {
            f"{tiers} tiers, {running}+{new}": admission(policy, running, new, TIERS[tiers], rounds)
            for tiers in TIERS
            for running in RUNNING
            for new in NEW
        }
    slos = registry.get("slos")
    report["step"] = {str(running): steps(slos, running, 10 * rounds) for running in (64, 256)}
    report["place over 64"] = {name: placement(slos, name, 64, rounds) for name in routing.ROUTING}
    report["labels"] = {
        f"4 tiers, {running}+{new}": label_value(running, new, max(1, rounds // share))
        for running, new, share in LABEL_CASES
    }
    report["targets"] = targets(report)
    return report


def targets(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """p99 of the figures that have a target, and the target."""
    measured = {
        "admission 100+10": report["admission slos"]["4 tiers, 100+10"]["p99_ms"],
        "admission 500+50": report["admission slos"]["4 tiers, 500+50"]["p99_ms"],
        "step 64": report["step"]["64"]["p99_ms"],
        "step 256": report["step"]["256"]["p99_ms"],
        "place 64": max(figures["p99_ms"] for figures in report["place over 64"].values()),
    }
    return {key: {"p99_ms": value, "target_ms": TARGETS_MS[key]} for key, value in measured.items()}


def show(whole: common.Result) -> None:
    """Print the report for people."""
    for section, figures in whole["result"].items():
        print(section)
        for name, values in figures.items():
            text = values if not isinstance(values, dict) else "  ".join(f"{k} {v:g}" for k, v in values.items())
            print(f"  {name:24} {text}")


def _measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    rounds = 30 if given.quick else 300
    return {"rounds": rounds}, run(rounds)


if __name__ == "__main__":
    sys.exit(common.main("planner", __doc__, _measure, show))
