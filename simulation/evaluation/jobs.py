"""The work behind docs/evaluation.md: capacity searches and single runs, named, cached and sent to processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from simulation import capacity
from simulation.cache import ENTRY, ResultCache, origin, policy_version, version
from simulation.capacity import Goal, Scoring
from simulation.config import ClusterConfig, Lengths
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
class Fleet:
    """How many replicas only prefill, only decode, and do both."""

    prefill: int
    decode: int
    both: int

    @property
    def replicas(self) -> int:
        """Replicas in all."""
        return self.prefill + self.decode + self.both

    def applied(self, cluster: ClusterConfig) -> ClusterConfig:
        """The cluster with these roles."""
        apart = self.prefill > 0
        return replace(
            cluster,
            replicas=self.replicas,
            prefill_replicas=self.prefill,
            colocated_replicas=self.both if apart else 0,
        )

    def __str__(self) -> str:
        if not self.prefill:
            return f"{self.both} co-located"
        mixed = f" + {self.both} co-located" if self.both else ""
        return f"{self.prefill}:{self.decode}{mixed}"


@dataclass(frozen=True, slots=True)
class Search:
    """One capacity search. changes: fields of ClusterConfig that differ from the default.

    fleet: roles of the replicas, in place of the policy's own ratio and of `replicas`.
    """

    policy: str
    profile: str
    scenario: str
    replicas: int = 1
    seed: int = 0
    attainment: float = 0.9
    scoring: Scoring = Scoring.STRICT
    changes: tuple[tuple[str, Any], ...] = ()
    fleet: Fleet | None = None

    @property
    def name(self) -> str:
        """For progress bars."""
        size = f"x{self.replicas}" if self.fleet is None else str(self.fleet)
        return f"{self.policy} {self.profile} {self.scenario} {size} seed {self.seed}"

    def spec(self, effort: Effort) -> RunSpec:
        """The run to search over, with the policy's best configuration."""
        changes = {"lengths": Lengths.QUANTILE, "seed": self.seed, **dict(self.changes)}
        options = changes.pop("policy_options", None)
        cluster = tuned(self.policy, self.profile, self.scenario).cluster(self.replicas, **changes)
        if options is not None:
            cluster = replace(cluster, policy_options=options)
        if self.fleet is not None:
            cluster = self.fleet.applied(cluster)
        return RunSpec(self.scenario, self.profile, 1.0, cluster, Part.REPORT, effort.data, effort.slice_s)


@dataclass(frozen=True, slots=True)
class Probe:
    """One run at a fixed rate per GPU."""

    search: Search
    rate_per_gpu: float


def made_of(job: Search | Probe, effort: Effort) -> dict[str, str]:
    """What the figures of a job depend on, as its row says it."""
    search, goal = (job, "") if isinstance(job, Search) else (job.search, f"{job.rate_per_gpu:.6g}")
    made = asdict(origin(search.spec(effort)))
    made["run"] += f"/{search.attainment:g}/{search.scoring}/{effort.tolerance:g}/{goal}"
    return made


def learns_margin(row: Figures) -> bool:
    """Whether the planner learned its margin in the runs of a row."""
    return bool(row.get("changes", {}).get("learn_margin") == str(True))


def speculates(row: Figures) -> bool:
    """Whether the row is of runs with speculation."""
    return bool(row.get("changes", {}).get("speculation") == str(True))


def code_now(row: Figures) -> dict[str, str]:
    """The code that a row would be made of now, as its `made_of` says it."""
    return {"policy": policy_version(row["policy"], learns_margin(row)), "simulator": version(ENTRY)}


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
