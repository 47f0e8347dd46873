"""What is computed: one function per section of docs/evaluation.md, each from jobs to JSON-able figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulation.capacity import Scoring
from simulation.config import Lengths
from simulation.evaluation.jobs import Effort, Figures, Probe, Search, Task, perform
from simulation.parallel import run_all
from simulation.scenarios.catalog import PAPER_SCENARIOS

OURS = ("dp", "edf-exact", "slos")
BASELINES = ("vllm", "vllm-v1", "sarathi", "distserve", "qoserve")
PROFILES = ("a100-opt-13b-kv", "a100-opt-7b")
THREE_SEEDS = ("chatbot", "coding")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which part of the grid to compute."""

    profiles: tuple[str, ...] = PROFILES
    scenarios: tuple[str, ...] = PAPER_SCENARIOS
    policies: tuple[str, ...] = (*BASELINES, *OURS)
    replicas: tuple[int, ...] = (1, 4)
    seeds: int = 3


def run_jobs(label: str, jobs: Sequence[Search | Probe], effort: Effort) -> list[Figures]:
    """All jobs over the cores."""
    return run_all(perform, [Task(job, effort) for job in jobs], label, _name, effort.processes, effort.quiet)


def _name(task: Task) -> str:
    return task.job.name if isinstance(task.job, Search) else task.job.search.name


def capacity_tables(scope: Scope, effort: Effort) -> list[Figures]:
    """Capacity at 90 %, strict, of every policy, scenario, profile and size; three seeds where listed."""
    jobs = [
        Search(policy, profile, scenario, replicas, seed)
        for profile in scope.profiles
        for replicas in scope.replicas
        for scenario in scope.scenarios
        for policy in scope.policies
        for seed in range(scope.seeds if scenario in THREE_SEEDS and replicas == 1 else 1)
    ]
    return _labelled(jobs, run_jobs("capacity", jobs, effort))


def at_99(scope: Scope, effort: Effort) -> list[Figures]:
    """Capacity at 99 %, strict, one replica."""
    jobs = [
        Search(policy, scope.profiles[0], scenario, attainment=0.99)
        for scenario in scope.scenarios
        for policy in scope.policies
    ]
    return _labelled(jobs, run_jobs("99 %", jobs, effort))


def paper_conditions(scope: Scope, effort: Effort) -> list[Figures]:
    """The paper's own conditions: its profile, known lengths, its scoring, the baselines of 2024."""
    profile = "a100-opt-7b" if "a100-opt-7b" in scope.profiles else scope.profiles[0]
    jobs = [
        Search(policy, profile, scenario, scoring=Scoring.PAPER, changes=(("lengths", Lengths.ORACLE),))
        for scenario in scope.scenarios
        for policy in ("vllm", "sarathi", "dp", "slos")
    ]
    return _labelled(jobs, run_jobs("paper's conditions", jobs, effort))


def precision(scope: Scope, effort: Effort, capacities: Sequence[Figures]) -> list[Figures]:
    """Promises kept at 95 % of capacity under noise of step times, with and without margin."""
    searches, found = [], []
    scenario = "mixed" if "mixed" in scope.scenarios else scope.scenarios[0]
    for policy in OURS:
        rate = _rate(capacities, policy, scope.profiles[0], scenario)
        for noise, margin in ((0.0, 1.0), (0.03, 1.0), (0.03, 1.1), (0.1, 1.0), (0.1, 1.2)):
            search = Search(policy, scope.profiles[0], scenario, changes=(("noise", noise), ("margin", margin)))
            if rate:
                searches.append(Probe(search, 0.95 * rate))
                found.append({"policy": policy, "scenario": scenario, "noise": noise, "margin": margin})
    results = run_jobs("precision", searches, effort)
    keep = ("attained", "precision", "promised", "rate_per_s", "best_effort_ttft_ms")
    return [{**label, **{k: r[k] for k in keep}} for label, r in zip(found, results, strict=True)]


ABLATIONS: dict[str, tuple[tuple[str, Any], ...]] = {
    "slos": (),
    "without admission (all promised)": (("admit_all", True),),
    "known lengths": (("lengths", Lengths.ORACLE),),
    "prefix cache": (("prefix_cache", True),),
}
"""Changes of the configuration; settings of the policy itself are in batch_ablations."""


def ablations(scope: Scope, effort: Effort) -> list[Figures]:
    """What single ingredients are worth, one replica of the first profile."""
    from scheduling.batching import BatchSettings

    variants = dict(ABLATIONS)
    fixed = BatchSettings(longest_s=0.05, longest_steps=1.0, paces=1.0, shortest_steps=1.0)
    variants["batches of at most 50 ms"] = (("policy_options", (("settings", fixed),)),)
    variants["greedy by deadline, no label search"] = (("policy_options", (("max_labels", 0),)),)
    jobs, labels = [], []
    for label, changes in variants.items():
        for scenario in scope.scenarios:
            if label == "prefix cache" and scenario != "tool-calling":
                continue
            jobs.append(Search("slos", scope.profiles[0], scenario, changes=changes))
            labels.append(label)
    found = _labelled(jobs, run_jobs("ablations", jobs, effort))
    return [{**figures, "variant": label} for figures, label in zip(found, labels, strict=True)]


def extras(scope: Scope, effort: Effort) -> list[Figures]:
    """Speculation and prefix cache, given to every policy that can use them."""
    jobs = []
    for scenario in scope.scenarios:
        for policy in scope.policies:
            changes: list[tuple[str, Any]] = [("prefix_cache", True), ("speculation", True)]
            search = Search(policy, scope.profiles[0], scenario, changes=tuple(changes))
            jobs.append(_with_drafts(search) if policy in BASELINES else search)
    return _labelled(jobs, run_jobs("speculation and prefix cache", jobs, effort))


def scale(scope: Scope, effort: Effort) -> list[Figures]:
    """Capacity per GPU of 1 to 16 replicas."""
    jobs = [
        Search(policy, scope.profiles[0], scenario, replicas)
        for scenario in scope.scenarios[:2]
        for policy in ("vllm-v1", "slos")
        for replicas in (1, 2, 4, 8, 16)
    ]
    return _labelled(jobs, run_jobs("scale", jobs, effort))


def lengths(scope: Scope, effort: Effort) -> list[Figures]:
    """What knowing output lengths is worth."""
    jobs = [
        Search(policy, scope.profiles[0], scenario, changes=(("lengths", known),))
        for scenario in scope.scenarios
        for policy in ("dp", "slos")
        for known in Lengths
    ]
    return _labelled(jobs, run_jobs("lengths", jobs, effort))


def time_error(scope: Scope, effort: Effort) -> list[Figures]:
    """The planner's model off by 0 to 20 %, in both directions."""
    jobs = [
        Search("slos", scope.profiles[0], scenario, changes=(("time_error", error),))
        for scenario in scope.scenarios[:2]
        for error in (-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2)
    ]
    return _labelled(jobs, run_jobs("time-model error", jobs, effort))


SENSITIVITY: dict[str, Callable[[Scope, Effort], list[Figures]]] = {
    "scale": scale,
    "lengths": lengths,
    "time-error": time_error,
}


def _with_drafts(search: Search) -> Search:
    from simulation.evaluation.settings import tuned

    options = tuned(search.policy, search.profile, search.scenario).options
    return replace(search, changes=(*search.changes, ("policy_options", (*options, ("spec_tokens", 4)))))


def _labelled(jobs: Sequence[Search], results: Sequence[Figures]) -> list[Figures]:
    return [
        {
            "policy": job.policy,
            "profile": job.profile,
            "scenario": job.scenario,
            "asked_replicas": job.replicas,
            "seed": job.seed,
            "changes": {k: str(v) for k, v in job.changes},
            **result,
        }
        for job, result in zip(jobs, results, strict=True)
    ]


def _rate(capacities: Sequence[Figures], policy: str, profile: str, scenario: str) -> float:
    for row in capacities:
        if (row["policy"], row["profile"], row["scenario"], row["asked_replicas"]) == (policy, profile, scenario, 1):
            return float(row["rate_per_gpu"])
    return 0.0


def merged(known: Sequence[Figures], new: Sequence[Figures]) -> list[Figures]:
    """Known rows with new ones in the place of those for the same cell and seed."""
    keys = ("policy", "profile", "scenario", "asked_replicas", "seed")
    rows = {tuple(row[k] for k in keys): row for row in (*known, *new)}
    return list(rows.values())
