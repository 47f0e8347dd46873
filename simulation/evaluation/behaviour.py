"""What a policy does, as a digest of a few small runs: tells a change of decisions from a change of code.

A row of the evaluation was made by some code. Where the code has changed since, the row still holds if the policy
decides as it did. The reference runs cover one replica beyond its capacity, memory that fills, several replicas with
prefix caches, sessions, and pairs beside a co-located replica: a decision that differs moves the time of a token in one
of them, and with it those of many later ones. Rows of runs with speculation, or with a learned margin under noise, have
reference runs of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from simulation.cache import digest
from simulation.evaluation.settings import GRIDS, Setting, tuned
from simulation.run import RunSpec, simulate

PROFILE = "a100-opt-13b-kv"
SLICE_S = 150.0
RESOLUTION_S = 1e-4
"""Times are compared to this, so that the last bit of a sum does not count."""

REFERENCE: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("mixed", 1.5, {}),
    ("reasoning", 1.0, {}),
    ("coding", 6.0, {"replicas": 2, "prefix_cache": True}),
    ("tool-calling", 0.06, {"replicas": 2, "prefix_cache": True, "routing": "prefix-affine"}),
)
"""Scenario, sessions per second and replica, and what differs from the default cluster."""
APART: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("summarization", 0.8, {"replicas": 2, "prefill_replicas": 1}),
    ("mixed", 1.5, {"replicas": 3, "prefill_replicas": 1, "colocated_replicas": 1, "prefix_cache": True}),
)
"""For the policies that are evaluated over pairs."""
IN_PAIRS = ("distserve", "slos")
SPECULATING: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("reasoning", 1.0, {"speculation": True}),
    ("coding", 6.0, {"replicas": 2, "prefix_cache": True, "speculation": True}),
)
LEARNING: tuple[tuple[str, float, dict[str, Any]], ...] = (("mixed", 1.5, {"learn_margin": True, "noise": 0.05}),)
VERIFIED_TOKENS = 4
"""Per decode, where a baseline speculates."""


def behaviour(policy: str, learns_margin: bool = False, speculates: bool = False) -> str:
    """Digest of what a policy does in the reference runs for rows of a kind."""
    if learns_margin:
        runs = LEARNING
    elif speculates:
        runs = SPECULATING
    else:
        runs = (*REFERENCE, *(APART if policy in IN_PAIRS else ()))
    return digest(*(_played(policy, *run) for run in runs))[:12]


def _played(policy: str, scenario: str, rate: float, changes: dict[str, Any]) -> str:
    """Digest of when every token of a run came."""
    setting = replace(tuned(policy, PROFILE, scenario), ratio=(0, 0))
    options = dict(setting.options)
    if changes.get("speculation") and policy in GRIDS:
        options["spec_tokens"] = VERIFIED_TOKENS
    setting = Setting(policy, tuple(options.items()))
    cluster = replace(setting.cluster(changes.get("replicas", 1)), **changes)
    requests = simulate(RunSpec(scenario, PROFILE, rate, cluster, slice_s=SLICE_S)).requests
    ticks = np.nan_to_num(np.round(requests.times / RESOLUTION_S), nan=-1.0, posinf=-1.0).astype(np.int64)
    return digest(ticks.tobytes().hex(), requests.promised.tobytes().hex())
