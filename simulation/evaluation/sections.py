"""What is computed: a list of jobs for each section of docs/evaluation.md, the most telling ones first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simulation.capacity import Scoring
from simulation.config import Lengths
from simulation.evaluation.jobs import Figures, Fleet, Probe, Search
from simulation.evaluation.settings import RATIOS, tuned
from simulation.scenarios.catalog import PAPER_SCENARIOS

OURS = ("slos", "edf-exact", "dp")
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


@dataclass(frozen=True, slots=True)
class Job:
    """One row of a section: what to compute, and what the row says beside its figures."""

    work: Search | Probe
    label: dict[str, Any] = field(default_factory=dict)

    @property
    def search(self) -> Search:
        """The cell it is about."""
        return self.work if isinstance(self.work, Search) else self.work.search

    @property
    def row(self) -> Figures:
        """The row's description; equal rows describe the same cell."""
        search = self.search
        return {
            "policy": search.policy,
            "profile": search.profile,
            "scenario": search.scenario,
            "asked_replicas": search.replicas,
            "seed": search.seed,
            "changes": {k: str(v) for k, v in search.changes},
            **({} if search.fleet is None else {"fleet": str(search.fleet)}),
            **self.label,
        }


Known = dict[str, Any]
"""Rows of the sections that are known already."""


def capacity(scope: Scope, known: Known) -> list[Job]:
    """Capacity at 90 %, strict, of every policy, scenario, profile and size; three seeds where listed."""
    return [
        Job(Search(policy, profile, scenario, replicas, seed))
        for replicas in scope.replicas
        for seed in range(scope.seeds)
        for profile in scope.profiles
        for policy in scope.policies
        for scenario in scope.scenarios
        if seed == 0 or (scenario in THREE_SEEDS and replicas == 1)
    ]


def equal_gpus(scope: Scope, known: Known) -> list[Job]:
    """Everybody on as many GPUs as DistServe's best ratio needs."""
    return [
        Job(Search(policy, profile, scenario, sum(tuned("distserve", profile, scenario).ratio)))
        for profile in scope.profiles
        for scenario in scope.scenarios
        for policy in scope.policies
    ]


PAIRS = tuple(Fleet(prefill, decode, 0) for prefill, decode in RATIOS["distserve"])
MIXED = (Fleet(1, 1, 1), Fleet(1, 1, 2), Fleet(2, 1, 1))
COLOCATED = (Fleet(0, 0, 2), Fleet(0, 0, 3))


def pairs(scope: Scope, known: Known) -> list[Job]:
    """Admission over pairs, mixed fleets and co-located ones; prefix cache and session affinity for everybody.

    DistServe may also take prompts in turn, as it does elsewhere: its best row counts.
    """
    first = [s for s in scope.scenarios if s == "tool-calling"]
    affine, in_turn = (("routing", "prefix-affine"),), ()
    kinds = (
        ("distserve", PAIRS, affine),
        ("slos", (*PAIRS, *MIXED, *COLOCATED), affine),
        ("distserve", PAIRS, in_turn),
    )
    return [
        Job(
            Search(
                policy,
                scope.profiles[0],
                scenario,
                fleet.replicas,
                changes=(("prefix_cache", True), *routing),
                fleet=fleet,
            )
        )
        for scenario in (*first, *(s for s in scope.scenarios if s not in first))
        for policy, fleets, routing in kinds
        for fleet in fleets
        if policy in scope.policies
    ]


def capacity_99(scope: Scope, known: Known) -> list[Job]:
    """Capacity at 99 %, strict, one replica."""
    return [
        Job(Search(policy, scope.profiles[0], scenario, attainment=0.99))
        for policy in scope.policies
        for scenario in scope.scenarios
    ]


def paper(scope: Scope, known: Known) -> list[Job]:
    """The paper's own conditions: its profile, known lengths, its scoring, the baselines of 2024."""
    profile = "a100-opt-7b" if "a100-opt-7b" in scope.profiles else scope.profiles[0]
    return [
        Job(Search(policy, profile, scenario, scoring=Scoring.PAPER, changes=(("lengths", Lengths.ORACLE),)))
        for scenario in scope.scenarios
        for policy in ("vllm", "sarathi", "dp", "slos")
    ]


LEARNED = "learned"
NOISE_AND_MARGIN: tuple[tuple[float, float | str], ...] = (
    (0.0, 1.0), (0.0, LEARNED),
    (0.03, 1.0), (0.03, 1.1), (0.03, LEARNED),
    (0.1, 1.0), (0.1, 1.2), (0.1, LEARNED),
)  # fmt: skip


def precision(scope: Scope, known: Known) -> list[Job]:
    """Promises kept at 95 % of capacity under noise of step times: no margin, a fixed one, a learned one."""
    jobs = []
    scenario = "mixed" if "mixed" in scope.scenarios else scope.scenarios[0]
    for policy in OURS:
        rate = _rate(known.get("capacity", []), policy, scope.profiles[0], scenario)
        for noise, margin in NOISE_AND_MARGIN:
            how = ("learn_margin", True) if margin == LEARNED else ("margin", margin)
            search = Search(policy, scope.profiles[0], scenario, changes=(("noise", noise), how))
            if rate:
                jobs.append(Job(Probe(search, 0.95 * rate), {"noise": noise, "margin": margin}))
    return jobs


ABLATIONS: dict[str, tuple[tuple[str, Any], ...]] = {
    "slos": (),
    "without admission (all promised)": (("admit_all", True),),
    "known lengths": (("lengths", Lengths.ORACLE),),
    "prefix cache": (("prefix_cache", True),),
}
"""Changes of the configuration; settings of the policy itself are in `ablations`."""

ROUTINGS = ("sequential", "round-robin", "feasible-least-loaded", "pack")


def ablations(scope: Scope, known: Known) -> list[Job]:
    """What single ingredients are worth, one replica of the first profile."""
    from scheduling.batch_settings import BatchSettings

    variants = dict(ABLATIONS)
    fixed = BatchSettings(longest_s=0.05, longest_steps=1.0, paces=1.0, shortest_steps=1.0)
    variants["batches of at most 50 ms"] = (("policy_options", (("settings", fixed),)),)
    variants["declined requests wait"] = (("policy_options", (("hopeful", False),)),)
    variants["greedy by deadline, no label search"] = (("policy_options", (("max_labels", 0),)),)
    return [
        Job(Search("slos", scope.profiles[0], scenario, changes=changes), {"variant": label})
        for label, changes in variants.items()
        for scenario in scope.scenarios
        if label != "prefix cache" or scenario == "tool-calling"
    ]


def routing(scope: Scope, known: Known) -> list[Job]:
    """What the order in which replicas are asked is worth."""
    replicas = max(scope.replicas)
    return [
        Job(Search("slos", scope.profiles[0], scenario, replicas, changes=(("routing", name),)), {"routing": name})
        for name in ROUTINGS
        for scenario in scope.scenarios
    ]


VERIFIED_TOKENS = (1, 4, 2)
"""Per decode, where a baseline is given speculation; 1: it does without. What carries most counts."""


def extras(scope: Scope, known: Known) -> list[Job]:
    """Speculation and prefix cache, given to every policy that can use them."""
    both: tuple[tuple[str, Any], ...] = (("prefix_cache", True), ("speculation", True))
    ours = [
        Job(Search(policy, scope.profiles[0], scenario, changes=both))
        for policy in scope.policies
        if policy not in BASELINES
        for scenario in scope.scenarios
    ]
    theirs = [
        Job(_verifying(tokens, Search(policy, scope.profiles[0], scenario, changes=both)))
        for tokens in VERIFIED_TOKENS
        for policy in scope.policies
        if policy in BASELINES
        for scenario in scope.scenarios
    ]
    return ours + theirs


def scale(scope: Scope, known: Known) -> list[Job]:
    """Capacity per GPU of 1 to 16 replicas."""
    return [
        Job(Search(policy, scope.profiles[0], scenario, replicas))
        for replicas in (1, 2, 4, 8, 16)
        for policy in ("vllm-v1", "slos")
        for scenario in scope.scenarios[:2]
    ]


def lengths(scope: Scope, known: Known) -> list[Job]:
    """What knowing output lengths is worth."""
    return [
        Job(Search(policy, scope.profiles[0], scenario, changes=(("lengths", what),)))
        for scenario in scope.scenarios
        for policy in ("slos", "dp")
        for what in Lengths
    ]


def time_error(scope: Scope, known: Known) -> list[Job]:
    """The planner's model off by 0 to 20 %, in both directions."""
    return [
        Job(Search("slos", scope.profiles[0], scenario, changes=(("time_error", error),)))
        for scenario in scope.scenarios[:2]
        for error in (0.0, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2)
    ]


SECTIONS: dict[str, Callable[[Scope, Known], list[Job]]] = {
    "capacity": capacity,
    "equal-gpus": equal_gpus,
    "pairs": pairs,
    "paper": paper,
    "precision": precision,
    "ablations": ablations,
    "capacity-99": capacity_99,
    "lengths": lengths,
    "time-error": time_error,
    "scale": scale,
    "routing": routing,
    "extras": extras,
}


def stages(scope: Scope) -> list[tuple[str, Scope]]:
    """Sections in the order of their worth: an evaluation that is interrupted has answered the first questions."""
    one = tuple(r for r in scope.replicas if r == 1)
    more = tuple(r for r in scope.replicas if r != 1)
    first, rest = scope.profiles[:1], scope.profiles[1:]
    return [
        ("capacity", replace(scope, profiles=first, replicas=one, seeds=1)),
        ("equal-gpus", replace(scope, profiles=first)),
        ("burst", scope),
        ("published", scope),
        ("paper", scope),
        ("precision", scope),
        ("pairs", scope),
        ("capacity", replace(scope, profiles=rest, replicas=one, seeds=1)),
        ("ablations", scope),
        ("capacity", replace(scope, profiles=first, replicas=more, seeds=1)),
        ("capacity", scope),
        ("equal-gpus", scope),
        ("lengths", scope),
        ("time-error", scope),
        ("capacity-99", scope),
        ("routing", scope),
        ("scale", scope),
        ("extras", scope),
    ]


def _verifying(tokens: int, search: Search) -> Search:
    if tokens == 1:
        return replace(search, changes=tuple(c for c in search.changes if c[0] != "speculation"))
    options = tuned(search.policy, search.profile, search.scenario).options
    return replace(search, changes=(*search.changes, ("policy_options", (*options, ("spec_tokens", tokens)))))


def _rate(capacities: Sequence[Figures], policy: str, profile: str, scenario: str) -> float:
    for row in capacities:
        if (row["policy"], row["profile"], row["scenario"], row["asked_replicas"]) == (policy, profile, scenario, 1):
            return float(row["rate_per_gpu"])
    return 0.0
