"""What a run showed: every request's score, and the figures drawn from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from scheduling.scoring import score
from simulation import engine_step
from simulation.cluster import Cluster

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One SLO class: counts are requests; times are milliseconds; shares are of all arrivals of the class."""

    name: str
    requests: int
    attained: float
    attained_paper: float
    promised: float
    precision: float
    ttft_ms: tuple[float, ...]
    tpot_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """One run.

    attained: share of sessions, all arrivals counted, strict; attained_paper: the paper's scoring; precision: kept /
    ever promised; rebuilt: share of computed prompt tokens that preemptions had made necessary; percentiles (of
    PERCENTILES) are empty where there is nothing to take them of.
    """

    policy: str
    profile: str
    replicas: int
    gpus: int
    sessions: int
    requests: int
    rate_per_s: float
    simulated_s: float
    attained: float
    attained_paper: float
    attained_and_promised: float
    promised: float
    precision: float
    ttft_ms: tuple[float, ...]
    tpot_ms: tuple[float, ...]
    best_effort_ttft_ms: tuple[float, ...]
    classes: tuple[ClassFigures, ...]
    steps: int
    busy: float
    tokens_per_step: float
    preemptions: int
    rebuilt: float
    shortages: int
    decisions: int
    stopped_early: bool

    def to_dict(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self)


def scores(cluster: Cluster, transit_s: float = 0.0) -> pd.DataFrame:
    """One row per request: who, when, lengths, what it was told and what it got.

    transit_s: how long a token is on its way from the engine to the client.
    """
    requests, workload = cluster.requests, cluster.workload
    rows = []
    for row in range(len(workload)):
        thinking = max(0, int(workload.thinking_tokens[row]) - 1)
        times = requests.token_times(row) + transit_s
        result = score(
            float(requests.arrival_s[row]), times, requests.owed(row), thinking, complete=bool(requests.finished[row])
        )
        rows.append(
            (
                result.attained,
                result.attained_paper,
                result.ttft_s,
                result.mean_tpot_s,
                result.worst_lateness_s,
                times[-1] if len(times) else np.inf,
            )
        )
    table = pd.DataFrame(
        rows, columns=["attained", "attained_paper", "ttft_s", "mean_tpot_s", "worst_lateness_s", "finished_s"]
    )
    names = np.array([c.name for c in workload.classes])
    table.insert(0, "slo_class", names[workload.class_index])
    table.insert(1, "session", workload.session)
    table.insert(2, "arrival_s", requests.arrival_s)
    table.insert(3, "prompt_tokens", workload.prompt_tokens)
    table.insert(4, "output_tokens", workload.output_tokens)
    table.insert(5, "cached_tokens", requests.cached)
    table["slo_ttft_s"] = requests.ttft_s + requests.relay_s
    table["slo_tpot_s"] = requests.tpot_s
    table["promised"] = requests.promised
    table["preemptions"] = requests.preemptions
    return table


def summarize(cluster: Cluster, table: pd.DataFrame) -> Summary:
    """The figures of a run."""
    config, profile, workload = cluster.config, cluster.profile, cluster.workload
    sessions = table.groupby("session")[["attained", "attained_paper", "promised"]].all()
    counters = np.sum([r.counters for r in cluster.replicas], axis=0)
    steps = sum(r.steps for r in cluster.replicas)
    kept = table["attained"] & table["promised"]
    end_s = max(cluster.now_s, 1e-9)
    classes = []
    for name, part in table.groupby("slo_class", sort=True):
        classes.append(
            ClassFigures(
                name=str(name),
                requests=len(part),
                attained=float(part["attained"].mean()),
                attained_paper=float(part["attained_paper"].mean()),
                promised=float(part["promised"].mean()),
                precision=_share(int((part["attained"] & part["promised"]).sum()), int(part["promised"].sum())),
                ttft_ms=_percentiles(part["ttft_s"]),
                tpot_ms=_percentiles(part["mean_tpot_s"]),
            )
        )
    return Summary(
        policy=config.policy,
        profile=profile.name,
        replicas=config.replicas,
        gpus=config.replicas * profile.gpus_per_replica,
        sessions=workload.sessions,
        requests=len(workload),
        rate_per_s=workload.sessions / max(workload.duration_s, 1e-9),
        simulated_s=end_s,
        attained=float(sessions["attained"].mean()),
        attained_paper=float(sessions["attained_paper"].mean()),
        attained_and_promised=float((sessions["attained"] & sessions["promised"]).mean()),
        promised=float(table["promised"].mean()),
        precision=_share(int(kept.sum()), int(table["promised"].sum())),
        ttft_ms=_percentiles(table["ttft_s"]),
        tpot_ms=_percentiles(table["mean_tpot_s"]),
        best_effort_ttft_ms=_percentiles(table.loc[~table["promised"], "ttft_s"]),
        classes=tuple(classes),
        steps=steps,
        busy=float(np.mean([r.busy_s for r in cluster.replicas]) / end_s),
        tokens_per_step=float(counters[engine_step.NEW_TOKENS]) / max(1, steps),
        preemptions=int(table["preemptions"].sum()),
        rebuilt=_share(int(counters[engine_step.REBUILT_TOKENS]), int(counters[engine_step.PREFILL_TOKENS]), empty=0.0),
        shortages=int(counters[engine_step.SHORTAGES]),
        decisions=cluster.controller.decisions,
        stopped_early=cluster.stopped_early,
    )


def write_requests(table: pd.DataFrame, path: Path) -> None:
    """Per-request rows as CSV or, by the name's ending, Parquet."""
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False, float_format="%.6f")


def _percentiles(seconds: pd.Series) -> tuple[float, ...]:
    """Milliseconds at PERCENTILES; empty when there is no value."""
    values = np.asarray(seconds, np.float64)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return ()
    return tuple(float(round(v * 1e3, 3)) for v in np.percentile(values, PERCENTILES))


def _share(part: int, whole: int, empty: float = 1.0) -> float:
    return part / whole if whole else empty
