"""The same requests against the real cluster under several policies and rates: what bench slo and bench policies run.

Every policy gets a cluster of its own, one after the other, so that all have the same cores to themselves. A rate has
one seed, the same for all policies; different rates have different seeds, so that no prefix cache helps the later one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks import prometheus
from benchmarks.common import say
from loadtest import knee, plan, slo_scale
from loadtest.own_cluster import OwnCluster, model_folder, own_cluster
from protos.slos.v1 import admin_pb2, admin_pb2_grpc
from scheduling.time_model import TimeModel

STEP_ERROR = "slos:step_time_error_ratio"
MARGIN = "slos:time_margin_ratio"
DRAFTS, ACCEPTED_DRAFTS = "slos:draft_tokens_total", "slos:accepted_draft_tokens_total"
_LOAD_TIMEOUT_S = 1800.0
KNEE_SHARES = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Rates of a sweep as multiples of the estimated knee."""


class SweepFailed(Exception):
    """A run of the load test did not end as it should; the text says how."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is sent, apart from the rate; see `python -m loadtest --help`."""

    scenario: str
    arrivals: str
    duration_s: float
    length_scale: float
    delay_scale: float
    seed: int
    timeout_s: float


def policy_arguments(name: str) -> tuple[str, ...]:
    """Arguments of `slosctl up` that run a policy in the controller and in the engines."""
    return ("--policy", name, f"--worker-option=--policy={name}")


def knee_rate_per_s(model: TimeModel, workload: Workload, window_tokens: int) -> float:
    """Rough rate at which one replica is full with this workload."""
    drawn = plan.make(
        workload.scenario,
        rate_per_s=5.0,
        duration_s=100.0,
        window_tokens=window_tokens,
        length_scale=workload.length_scale,
        seed=workload.seed,
    )
    return knee.knee_rate_per_s([model], drawn.sessions)


def run(
    policies: dict[str, Sequence[str]],
    workload: Workload,
    rates: Sequence[float] | None,
    quick: bool,
    engines: int = 1,
    first: Callable[[str, OwnCluster], None] = lambda *_: None,
) -> dict[str, Any]:
    """Rows of (policy, rate) in that order; policies maps a name to arguments of `slosctl up`.

    rates None: multiples of the estimated knee of so many engines, the same for all policies. first: called with each
    policy's name and its cluster, before the load.
    """
    rows: list[dict[str, Any]] = []
    engine: dict[str, Any] = {}
    model = model_folder()
    profile = ("--worker-option=--profile-quick",) if quick else ()
    with tempfile.TemporaryDirectory(prefix="slos-sweep-") as folder:
        for name, arguments in policies.items():
            # One state folder for all: the first cluster's fit of the engine serves the later ones too.
            with own_cluster(Path(folder), (*arguments, *profile), model) as cluster:
                first(name, cluster)
                rates = _sweep(cluster, name, workload, rates, quick, engines, engine, rows)
    return {"engine": engine, "rates_per_s": list(rates or ()), "rows": rows}


def _sweep(
    cluster: OwnCluster,
    policy: str,
    workload: Workload,
    rates: Sequence[float] | None,
    quick: bool,
    engines: int,
    engine: dict[str, Any],
    rows: list[dict[str, Any]],
) -> Sequence[float]:
    """Append a row per rate; the first policy fills in engine and, where they are not given, the rates."""
    replica, window_tokens = _replica(cluster)
    time_model = TimeModel.from_json(replica.time_model_json)
    if not engine:
        engine |= {
            "hardware": replica.hardware,
            "model": replica.model,
            "emulated": replica.emulated,
            "time_model": json.loads(time_model.to_json()),
            "fit": asdict(time_model.quality) if time_model.quality else None,
            "slo_scale": round(slo_scale.scale_for([time_model]), 2),
        }
    if rates is None:
        full = engines * knee_rate_per_s(time_model, workload, window_tokens)
        rates = [round(full * share, 3) for share in (KNEE_SHARES[1::2] if quick else KNEE_SHARES)]
        say(f"estimated knee: {full:.2f} sessions/s; rates {rates}")
    for index, rate in enumerate(rates):
        say(f"{policy}: {rate:g} sessions/s")
        rows.append({"policy": policy, **_one(cluster, workload, rate, index, engine["slo_scale"])})
    return rates


def load(cluster: OwnCluster, workload: Workload, rate: float, seed: int, scale: float, out: Path) -> dict[str, Any]:
    """Run the load test in a process of its own and read what it wrote; SweepFailed when sessions were lost."""
    command = [
        *(sys.executable, "-m", "loadtest", "--host", cluster.url, "--grpc", cluster.grpc_address),
        *("--transport", "grpc", "--scenario", workload.scenario, "--arrivals", workload.arrivals),
        *("--rate", str(rate), "--duration", str(workload.duration_s), "--seed", str(seed)),
        *("--length-scale", str(workload.length_scale), "--delay-scale", str(workload.delay_scale)),
        *("--slo-scale", str(scale), "--timeout", str(workload.timeout_s), "--json", str(out)),
    ]
    try:
        done = subprocess.run(command, stdout=sys.stderr, timeout=_LOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise SweepFailed(f"the load test did not end within {_LOAD_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise SweepFailed(f"the load test exited with {done.returncode}; its lines above say why")
    data: dict[str, Any] = json.loads(out.read_text())
    return data


def _drafts(text: str) -> tuple[int, int]:
    """Drafted tokens so far, and those of them that were accepted."""
    return round(sum(prometheus.values(text, DRAFTS))), round(sum(prometheus.values(text, ACCEPTED_DRAFTS)))


def _one(cluster: OwnCluster, workload: Workload, rate: float, index: int, scale: float) -> dict[str, Any]:
    text = prometheus.fetch(cluster.url)
    before = prometheus.buckets(text, STEP_ERROR)
    drafts_before = _drafts(text)
    data = load(cluster, workload, rate, workload.seed + index, scale, cluster.folder / f"load-{index}.json")
    text = prometheus.fetch(cluster.url)
    errors = prometheus.since(prometheus.buckets(text, STEP_ERROR), before)
    margins = prometheus.values(text, MARGIN)
    drafts, accepted = (now - then for now, then in zip(_drafts(text), drafts_before, strict=True))
    return {
        "rate_per_s": rate,
        "seed": workload.seed + index,
        "classes": data["classes"],
        "output_tokens_per_s": data["facts"]["output_tokens_per_s"],
        "latest_send_ms": data["facts"]["latest_send_ms"],
        "margin": margins[0] if margins else None,
        "draft_tokens": drafts,
        "accepted_draft_tokens": accepted,
        "step_time_measured_over_predicted": {
            f"p{share * 100:g}": prometheus.quantile(errors, share) for share in (0.5, 0.9, 0.99)
        },
    }


def _replica(cluster: OwnCluster) -> tuple[admin_pb2.Replica, int]:
    """The first replica and the window of its model."""
    from protos.slos.v1 import client_pb2, client_pb2_grpc

    with grpc.insecure_channel(cluster.grpc_address) as channel:
        replicas = admin_pb2_grpc.AdminStub(channel).ListReplicas(admin_pb2.ListReplicasRequest(), timeout=30.0)
        models = client_pb2_grpc.ClientStub(channel).ListModels(client_pb2.ListModelsRequest(), timeout=30.0)
    return replicas.replicas[0], int(models.models[0].max_model_len)
