"""The work behind docs/evaluation.md: capacity searches and single runs, named, cached and sent to processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from simulation import capacity
from simulation.cache import ResultCache
from simulation.capacity import Goal, Scoring
from simulation.config import Lengths
from simulation.evaluation.settings import is_tuned, tuned
from simulation.run import RunSpec
from simulation.scenarios.sources import SLICE_S, Part

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is computed; data: folder of the public files."""

    data: str | None
    cache: str
    slice_s: float = SLICE_S
    tolerance: float = capacity.TOLERANCE
    processes: int = 1
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Search:
    """One capacity search. changes: fields of ClusterConfig that differ from the default."""

    policy: str
    profile: str
    scenario: str
    replicas: int = 1
    seed: int = 0
    attainment: float = 0.9
    scoring: Scoring = Scoring.STRICT
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """For progress bars."""
        return f"{self.policy} {self.profile} {self.scenario} x{self.replicas} seed {self.seed}"

    def spec(self, effort: Effort) -> RunSpec:
        """The run to search over, with the policy's best configuration."""
        changes = {"lengths": Lengths.QUANTILE, "seed": self.seed, **dict(self.changes)}
        options = changes.pop("policy_options", None)
        cluster = tuned(self.policy, self.profile, self.scenario).cluster(self.replicas, **changes)
        if options is not None:
            cluster = replace(cluster, policy_options=options)
        return RunSpec(self.scenario, self.profile, 1.0, cluster, Part.REPORT, effort.data, effort.slice_s)


@dataclass(frozen=True, slots=True)
class Probe:
    """One run at a fixed rate per GPU."""

    search: Search
    rate_per_gpu: float


@dataclass(frozen=True, slots=True)
class Task:
    """A job with the effort to spend; what worker processes get."""

    job: Search | Probe
    effort: Effort
    start: float | None = None


def perform(task: Task) -> Figures:
    """Do a job; JSON-able figures."""
    cache, job, effort = ResultCache(Path(task.effort.cache)), task.job, task.effort
    if isinstance(job, Probe):
        return cache.summary(job.search.spec(effort).at_rate(job.rate_per_gpu)).to_dict()
    goal = Goal(job.attainment, job.scoring)
    start = task.start or _start(job, effort)
    found = capacity.find(job.spec(effort), goal, cache, start, effort.tolerance)
    at = found.at
    return {
        "rate_per_gpu": found.rate_per_gpu,
        "tuned": is_tuned(job.policy, job.profile, job.scenario),
        "runs": found.runs,
        "replicas": job.spec(effort).cluster.replicas,
        "precision": at.precision if at else None,
        "attained": at.attained if at else None,
        "ttft_ms": at.ttft_ms if at else None,
        "tpot_ms": at.tpot_ms if at else None,
        "best_effort_ttft_ms": at.best_effort_ttft_ms if at else None,
        "rebuilt": at.rebuilt if at else None,
        "busy": at.busy if at else None,
        "tokens_per_step": at.tokens_per_step if at else None,
        "steps_per_s": at.steps / at.simulated_s if at else None,
        "promised": at.promised if at else None,
        "simulated_s": at.simulated_s if at else None,
    }


@lru_cache(maxsize=256)
def _start(job: Search, effort: Effort) -> float | None:
    """Where to look first: what the tuning found for this policy, else for the baseline nearest to ours."""
    setting = tuned(job.policy, job.profile, job.scenario)
    rate = setting.rate_per_gpu or 1.25 * tuned("qoserve", job.profile, job.scenario).rate_per_gpu
    return rate or None
