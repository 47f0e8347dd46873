"""Tables of fleets: everybody on DistServe's number of GPUs, and admission over pairs of replicas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulation.evaluation.capacity_tables import NOT_RUN, line, quotient, ratio, table_and_ratios
from simulation.evaluation.numbers import geometric_mean

Rows = Sequence[dict[str, Any]]


def equal_gpus_section(rows: Rows, out: Path) -> str:
    """Capacity per GPU of everybody on the GPUs that DistServe's best ratio needs."""
    text = [
        "## On as many GPUs as DistServe's best ratio\n",
        "DistServe needs two or three GPUs, and gets the traffic of as many, laid over each other, which smooths"
        " bursts. Here everybody has as many (in brackets) and the traffic of as many; rates are per GPU.\n",
    ]
    for profile in dict.fromkeys(r["profile"] for r in rows):
        sizes = {r["scenario"]: r["asked_replicas"] for r in rows if r["profile"] == profile}
        text += [f"### {profile}\n", table_and_ratios(rows, profile, None, sizes)]
    return "\n".join(text)


def pairs_section(rows: Rows, out: Path) -> str:
    """Admission over pairs and mixed fleets beside DistServe's ratios."""
    fleets: dict[str, list[str]] = {}
    rates: dict[tuple[str, str, str], float] = {}
    for row in rows:
        policy, fleet, scenario = row["policy"], row["fleet"], row["scenario"]
        if fleet not in fleets.setdefault(policy, []):
            fleets[policy].append(fleet)
        rate = rates.get((policy, fleet, scenario), 0.0)
        rates[policy, fleet, scenario] = max(rate, row["rate_per_gpu"])
    scenarios = list(dict.fromkeys(r["scenario"] for r in rows))
    text = [
        f"## Admission over pairs and mixed fleets, {rows[0]['profile']}\n",
        "Prefill:decode replicas; sessions per second and GPU. Everybody has the prefix cache on both sides, sessions"
        " go where their KV is, and what a decode replica holds already is not sent again; DistServe has the better of"
        " that and of taking prompts in turn. `slos` asks for a pair (or for one replica: one that holds the session's"
        " KV, or one that has room when no pair can promise it) with the code that the controller uses; its first token"
        " comes from the decode replica, after the transfer, DistServe's from the prefill replica.\n",
        line(["policy", "fleet", *scenarios]),
        line(["---"] * (len(scenarios) + 2)),
    ]
    for policy, of in fleets.items():
        for fleet in of:
            values = (rates.get((policy, fleet, s)) for s in scenarios)
            text.append(line([policy, fleet, *(NOT_RUN if v is None else f"{v:.4g}" for v in values)]))
    text += ["\nOver DistServe at its best ratio:\n"]
    text += [line(["policy", "fleet", *scenarios, "geo-mean"]), line(["---"] * (len(scenarios) + 3))]
    best = {
        s: max((v for (p, _, t), v in rates.items() if (p, t) == ("distserve", s)), default=None) for s in scenarios
    }
    for fleet in fleets.get("slos", ()):
        ratios = [quotient(rates.get(("slos", fleet, s)), best[s]) for s in scenarios]
        text.append(line(["slos", fleet, *map(ratio, ratios), ratio(geometric_mean(ratios))]))
    return "\n".join(text) + "\n"
