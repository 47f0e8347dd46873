"""One simulated run, described by values that can be hashed, sent to another process and repeated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from simulation import profiles
from simulation.cluster import Cluster
from simulation.config import ClusterConfig
from simulation.results import Summary, scores, summarize
from simulation.scenarios import slices
from simulation.scenarios.catalog import find_scenario
from simulation.scenarios.sources import SLICE_S, Part


@dataclass(frozen=True, slots=True)
class RunSpec:
    """rate_per_gpu: sessions per second and GPU; data: folder of the public files, None for fitted workloads."""

    scenario: str
    profile: str
    rate_per_gpu: float
    cluster: ClusterConfig
    part: Part = Part.REPORT
    data: str | None = None
    slice_s: float = SLICE_S

    def at_rate(self, rate_per_gpu: float) -> RunSpec:
        """The same run at another rate."""
        return replace(self, rate_per_gpu=rate_per_gpu)

    def with_seed(self, seed: int) -> RunSpec:
        """The same run with other lengths, shifts and noise."""
        return replace(self, cluster=replace(self.cluster, seed=seed))


def build(spec: RunSpec) -> Cluster:
    """The run, with nothing played yet."""
    profile = profiles.load(spec.profile)
    workload = slices.build(
        find_scenario(spec.scenario),
        spec.rate_per_gpu * spec.cluster.replicas * profile.gpus_per_replica,
        part=spec.part,
        seed=spec.cluster.seed,
        data=Path(spec.data) if spec.data else None,
        slice_s=spec.slice_s,
    )
    return Cluster(workload, profile, spec.cluster)


def simulate(spec: RunSpec) -> Cluster:
    """Play the run to its end."""
    cluster = build(spec)
    cluster.run()
    return cluster


def run(spec: RunSpec) -> tuple[Summary, pd.DataFrame]:
    """Play the run; its figures and its requests."""
    cluster = simulate(spec)
    table = scores(cluster)
    return summarize(cluster, table), table
