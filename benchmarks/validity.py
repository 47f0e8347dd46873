"""How well the simulator predicts the real cluster: the same requests through both.

The real run comes first; the simulator then gets its arrival times and token counts, the engine's time model (halfway
between that before the run and that after it, where it was refitted), how far steps were off their predictions, and
what the planner used: its margin, and the relay time that it takes off deadlines. Both are scored by the same function
and reported in the same fields. The simulator knows output lengths as the cluster did: the load test's max_tokens is
the length.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from rich.table import Table

from benchmarks import common, prometheus, slo, sweep
from loadtest.own_cluster import own_cluster
from loadtest.records import Record
from protos.slos.v1 import admin_pb2, admin_pb2_grpc
from scheduling.classes import APPLICATION_CLASSES, scaled
from scheduling.time_model import TimeModel
from simulation import profiles
from simulation.cluster import Cluster
from simulation.config import ClusterConfig, Lengths
from simulation.profiles import Profile
from simulation.results import scores
from simulation.workload import Workload, merged, single_stage

ATTAINMENT_POINTS = 5.0
STEP_SHARES = 100
MEDIAN_SHARE = 0.15
TRANSIT, RELAY = "slos:relay_p50_seconds", "slos:relay_p99_seconds"


@dataclass(frozen=True, slots=True)
class Figures:
    """What both sides report; times in milliseconds, shares of all requests."""

    requests: int
    finished: int
    prompt_tokens: int
    output_tokens: int
    attainment: float
    attainment_paper: float
    promised: float
    precision: float | None
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {name: getattr(self, name) for name in Figures.__dataclass_fields__}


def real_figures(records: Sequence[Record]) -> Figures:
    """Figures of the real run, by the controller's clock."""
    outcomes = [r.outcome for r in records if r.outcome is not None]
    promised = [o for o in outcomes if o.promised]
    return Figures(
        requests=len(records),
        finished=sum(r.finished for r in records),
        prompt_tokens=sum(r.prompt_tokens for r in records),
        output_tokens=sum(r.output_tokens for r in records),
        attainment=sum(o.attained for o in outcomes) / len(records),
        attainment_paper=sum(o.attained_paper for o in outcomes) / len(records),
        promised=len(promised) / len(records),
        precision=sum(o.promise_kept for o in promised) / len(promised) if promised else None,
        **_times(
            [o.ttft_ms for o in outcomes],
            [r.outcome.mean_tpot_ms for r in records if r.outcome is not None and r.output_tokens > 1],
        ),
    )


def simulated_figures(cluster: Cluster, transit_s: float) -> Figures:
    """The same of the simulated run; transit_s: from the engine to the front door, where the real run was timed."""
    table = scores(cluster, transit_s)
    promised = table[table["promised"]]
    decoding = table[table["output_tokens"] > 1]
    return Figures(
        requests=len(table),
        finished=int(cluster.requests.finished.sum()),
        prompt_tokens=int(table["prompt_tokens"].sum()),
        output_tokens=int(cluster.requests.produced.sum()),
        attainment=float(table["attained"].mean()),
        attainment_paper=float(table["attained_paper"].mean()),
        promised=float(table["promised"].mean()),
        precision=float(promised["attained"].mean()) if len(promised) else None,
        **_times(list(table["ttft_s"] * 1e3), list(decoding["mean_tpot_s"] * 1e3)),
    )


def workload_of(records: Sequence[Record], scale: float) -> Workload:
    """Arrivals and lengths of the real run for the simulator; every record must be a request of a single stage."""
    parts = []
    for application in sorted({r.application for r in records}):
        mine = sorted((r for r in records if r.application == application), key=lambda r: r.sent_s)
        if any(r.round for r in mine):
            raise ValueError("tool sessions are not compared: their rounds depend on when answers come")
        parts.append(
            single_stage(
                scaled(APPLICATION_CLASSES[application], scale),
                np.array([r.sent_s for r in mine]),
                np.array([r.prompt_tokens for r in mine], np.int64),
                np.array([r.output_tokens for r in mine], np.int64),
            )
        )
    return merged(parts)


def compare(real: Figures, simulated: Figures) -> dict[str, Any]:
    """Distances, and whether they are inside the bounds."""

    def apart(name: str) -> float | None:
        measured, predicted = getattr(real, name), getattr(simulated, name)
        return None if not measured or predicted is None else predicted / measured - 1.0

    points = (simulated.attainment - real.attainment) * 100
    ttft, tpot = apart("ttft_p50_ms"), apart("tpot_p50_ms")
    return {
        "attainment_points": points,
        "ttft_p50_apart": ttft,
        "tpot_p50_apart": tpot,
        "within": abs(points) <= ATTAINMENT_POINTS
        and all(value is not None and abs(value) <= MEDIAN_SHARE for value in (ttft, tpot)),
    }


@dataclass(frozen=True, slots=True)
class Engine:
    """How the real engine and its planner were while the load ran.

    factors: measured over predicted step times, at even shares of the steps; margin: the planner's factor, between that
    before and that after; relay_s: what it took off deadlines; transit_s: how long a token was on its way from the
    engine to the front door.
    """

    factors: tuple[float, ...] = (1.0,)
    margin: float = 1.0
    relay_s: float = 0.0
    transit_s: float = 0.0


def engine_of(text: str, before: str) -> Engine:
    """Read it from /metrics after the run and before it."""
    errors = prometheus.since(*(prometheus.buckets(reading, sweep.STEP_ERROR) for reading in (text, before)))
    factors = [prometheus.quantile(errors, (k + 0.5) / STEP_SHARES) for k in range(STEP_SHARES)]
    margins = [*prometheus.values(before, sweep.MARGIN), *prometheus.values(text, sweep.MARGIN)]
    relays, transits = (prometheus.values(text, name) for name in (RELAY, TRANSIT))
    return Engine(
        factors=tuple(factor for factor in factors if factor is not None) or (1.0,),
        margin=max(1.0, float(np.exp(np.mean(np.log(margins))))) if margins else 1.0,
        relay_s=relays[0] if relays else 0.0,
        transit_s=transits[0] if transits else 0.0,
    )


def halfway(before: TimeModel, after: TimeModel) -> TimeModel:
    """The time model while it was refitted from one to the other; the later one where they differ in form."""
    if len(before.lines) != len(after.lines):
        return after
    pairs = zip(before.lines, after.lines, strict=True)
    return replace(after, lines=tuple(tuple((a + b) / 2 for a, b in zip(*pair, strict=True)) for pair in pairs))


def simulate(records: Sequence[Record], profile: Profile, policy: str, scale: float, engine: Engine) -> Figures:
    """Play the real run's requests on virtual time; steps are as far off the profile as they were."""
    config = ClusterConfig(
        policy=policy,
        lengths=Lengths.ORACLE,
        margin=engine.margin,
        relay_s=engine.relay_s,
    )
    cluster = Cluster(workload_of(records, scale), profile, config, factors=np.array(engine.factors))
    cluster.run()
    return simulated_figures(cluster, engine.transit_s)


def measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the real cluster at a few rates, and the simulator after each."""
    work = slo.workload(given)
    arguments = ["--engine", given.engine, *sweep.policy_arguments(given.policy)]
    if given.quick:
        arguments.append("--worker-option=--profile-quick")
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="slos-validity-") as folder,
        own_cluster(Path(folder), arguments) as cluster,
    ):
        profile, window_tokens = fitted_profile(cluster.grpc_address, Path(folder))
        scale = round(sweep.slo_scale.scale_for([profile.time_model]), 2)
        knee = sweep.knee_rate_per_s(profile.time_model, work, window_tokens)
        rates = given.rates or [round(knee * share, 3) for share in ((0.75,) if given.quick else (0.5, 0.75, 1.0))]
        for index, rate in enumerate(rates):
            common.say(f"{rate:g} sessions/s")
            out = Path(folder) / f"load-{index}.json"
            before = prometheus.fetch(cluster.url)
            data = sweep.load(cluster, work, rate, work.seed + index, scale, out)
            records = [Record.from_dict(r) for r in data["records"]]
            engine = engine_of(prometheus.fetch(cluster.url), before)
            real = real_figures(records)
            earlier, (profile, _) = profile.time_model, fitted_profile(cluster.grpc_address, Path(folder))
            meanwhile = replace(profile, time_model=halfway(earlier, profile.time_model))
            simulated = simulate(records, meanwhile, given.policy, scale, engine)
            rows.append(
                {
                    "rate_per_s": rate,
                    "engine": asdict(engine),
                    "time_model": json.loads(meanwhile.time_model.to_json()),
                    "real": real.to_dict(),
                    "simulated": simulated.to_dict(),
                    **compare(real, simulated),
                }
            )
    result = {
        "profile": json.loads(profile.to_json()),
        "slo_scale": scale,
        "rows": rows,
        "bounds": {"attainment_points": ATTAINMENT_POINTS, "median_share": MEDIAN_SHARE},
    }
    return {**slo.settings(given), "policy": given.policy}, result


def fitted_profile(grpc_address: str, folder: Path) -> tuple[Profile, int]:
    """The engine's fitted time model and limits as a hardware profile, and the model's window."""
    with grpc.insecure_channel(grpc_address) as channel:
        replicas = admin_pb2_grpc.AdminStub(channel).ListReplicas(admin_pb2.ListReplicasRequest(), timeout=30.0)
    replica = replicas.replicas[0]
    file = folder / "engine.json"
    engine = {
        "model": replica.model,
        "hardware": replica.hardware,
        "max_model_len": replica.max_model_len,
        "block_size": replica.block_size,
        "kv_blocks": int(replica.kv_capacity_tokens) // replica.block_size,
        "max_batch_tokens": replica.max_batch_tokens,
        "max_batch_requests": replica.max_batch_requests,
        "max_spec_tokens": max(1, replica.max_spec_tokens),
    }
    model = TimeModel.from_json(replica.time_model_json).with_margin(1.0)
    file.write_text(json.dumps({"time_model": json.loads(model.to_json()), "engine": engine}))
    return profiles.load(str(file)), int(replica.max_model_len)


def show(whole: common.Result) -> None:
    """Print both sides below each other."""
    table = Table(
        *("sessions/s", "", "requests", "attained", "promised", "TTFT p50", "p99", "TPOT p50", "p99", "within"),
        title="The real cluster and the simulator",
        title_justify="left",
    )
    for row in whole["result"]["rows"]:
        for side in ("real", "simulated"):
            figures = row[side]
            times = (figures[name] for name in ("ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms"))
            table.add_row(
                f"{row['rate_per_s']:g}" if side == "real" else "",
                side,
                str(figures["requests"]),
                f"{figures['attainment']:.1%}",
                f"{figures['promised']:.1%}",
                *("-" if value is None else f"{value:,.0f}" for value in times),
                "" if side == "real" else "yes" if row["within"] else "no",
            )
    common.console().print(table)


def _times(ttft_ms: list[float], tpot_ms: list[float]) -> dict[str, float | None]:
    finite = [t for t in ttft_ms if np.isfinite(t)]
    return {
        "ttft_p50_ms": common.percentile(finite, 0.5),
        "ttft_p99_ms": common.percentile(finite, 0.99),
        "tpot_p50_ms": common.percentile(tpot_ms, 0.5),
        "tpot_p99_ms": common.percentile(tpot_ms, 0.99),
    }


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    slo.add_arguments(parser)
    parser.set_defaults(arrivals="poisson")
    parser.add_argument("--policy", default="slos")


if __name__ == "__main__":
    sys.exit(common.main("validity", __doc__, measure, show, _add_arguments))
