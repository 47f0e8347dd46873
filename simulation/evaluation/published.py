"""The simulated vLLM and DistServe against what DistServe's authors published of both (OSDI 2024, figure 1).

OPT-13B on A100-80GB, prompts of 512 and outputs of 64 tokens, Poisson arrivals; goodput is the highest rate per GPU
at which the 90th percentiles are within 0.4 s (TTFT) and 40 ms (TPOT).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from scheduling.types import SloClass
from simulation import profiles
from simulation.cluster import Cluster
from simulation.config import ClusterConfig, Lengths
from simulation.evaluation.jobs import Figures
from simulation.results import scores
from simulation.workload import single_stage

PROFILE = "a100-opt-13b-kv"
SLO = SloClass("synthetic", 0.04, ttft_s=0.4)
PROMPT, OUTPUT = 512, 64
STEP = 0.02


def rows(requests: int = 2000) -> list[Figures]:
    """Published and simulated goodput of each deployment, requests per second and GPU."""
    deployments = (
        ("vLLM, one GPU", 1.6, OUTPUT, ClusterConfig("vllm", lengths=Lengths.ORACLE)),
        ("prefill only, one GPU", 5.6, 1, ClusterConfig("vllm", lengths=Lengths.ORACLE)),
        (
            "two prefill GPUs, one decode GPU",
            3.3,
            OUTPUT,
            ClusterConfig("distserve", lengths=Lengths.ORACLE, replicas=3, prefill_replicas=2),
        ),
    )
    return [
        {
            "deployment": name,
            "published": published,
            "simulated": highest(lambda rate, o=output, c=config: kept(rate, o, c, requests)),
        }
        for name, published, output, config in deployments
    ]


def kept(rate_per_gpu: float, output: int, config: ClusterConfig, requests: int) -> bool:
    """Whether both percentiles are within their limits."""
    gaps = np.random.default_rng(0).exponential(1.0 / (rate_per_gpu * config.replicas), requests)
    workload = single_stage(SLO, np.cumsum(gaps), np.full(requests, PROMPT), np.full(requests, output))
    cluster = Cluster(workload, profiles.load(PROFILE), config)
    cluster.run()
    table = scores(cluster)
    ttft_s, tpot_s = np.percentile(table["ttft_s"], 90), np.percentile(table["mean_tpot_s"].fillna(0.0), 90)
    return bool(ttft_s <= 0.4 and tpot_s <= SLO.tpot_s)


def highest(meets: Callable[[float], bool]) -> float:
    """The highest rate that meets the goal, to within STEP."""
    low, high = 0.5, 1.0
    while meets(high):
        low, high = high, 2.0 * high
    while math.log(high / low) > STEP:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low
