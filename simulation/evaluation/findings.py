"""What the numbers mean, in words: the end of docs/evaluation.md. Losses are computed, so that none is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulation.evaluation.numbers import Table, capacity_table, geometric_mean
from simulation.evaluation.sections import BASELINES

TIE, BURSTY_TIE = 0.05, 0.15
BURSTY = ("coding", "tool-calling")

SIMULATED = """## What is simulated, what is real

* Simulated: everything on this page. The engine is a time model: a step takes what the profile says, plus noise where
  stated. Kernels, launches, tile sizes and the Python of an engine are in it only as far as the profile's fit holds
  them. Tool latency and the links between replicas are assumed.
* Real: the planner, line for line what runs in the controller and inside vLLM, and the arrivals and lengths where the
  public files were given.
* A planner decides at the next step boundary with the state that boundary will have; a real controller decides a
  network hop earlier, on the state of the last event.
* Best-effort work runs on after the last arrival until all of it has finished; what was never promised counts as
  attained where it kept every deadline all the same.
* The ten-minute rule lays shifted copies of the slice over each other where one copy would be over too soon, and that
  smooths bursts: whoever reaches a high total rate in coding is then measured on calmer traffic than who does not.
* DistServe needs two or three GPUs where the others have one. Its rate is per GPU, but its cluster is larger: a burst
  is spread over more GPUs, and its higher total rate brings more copies. In the bursty scenarios its row at one replica
  is therefore flattered; the tables on as many GPUs as its best ratio, and those of four replicas, compare like with
  like, and the means over the best co-located baseline leave it out.
* Every transfer of KV has a link to itself, and begins when its whole prompt is computed (a real one sends layer by
  layer beside the computing, and shares the link). A preempted request is computed again where it decodes.
* A row that was made before its policy's decisions last changed is named under its table. Code changes more often than
  decisions: a row still holds where the code of then and the code of now decide the same in the reference runs of
  `simulation/evaluation/behaviour.py`, to the time of every token.
"""


def findings(known: dict[str, Any]) -> str:
    """The closing section."""
    capacities = known.get("capacity", [])
    return "\n".join((SIMULATED, _together(capacities), _losses(capacities, known.get("equal-gpus", []))))


def _together(capacities: Sequence[dict[str, Any]]) -> str:
    """What several replicas carry, in all, over what one does."""
    text = ["## What replicas carry together: total rate of slos over its rate on one\n"]
    for profile, replicas in dict.fromkeys((r["profile"], r["asked_replicas"]) for r in capacities):
        one, several = (capacity_table(capacities, profile, count) for count in (1, replicas))
        times = {
            scenario: replicas * cell["slos"] / one[scenario]["slos"]
            for scenario, cell in several.items()
            if replicas > 1 and cell.get("slos") and one.get(scenario, {}).get("slos")
        }
        if times:
            cells = ", ".join(f"{scenario} {factor:.1f}" for scenario, factor in times.items())
            mean = geometric_mean(times.values())
            text.append(f"* {profile}, {replicas} replicas: {cells}; geo-mean of these {mean:.1f}")
    if len(text) == 1:
        text.append("* not known: slos was not run on one replica and on several")
    return "\n".join(text) + "\n"


def _losses(capacities: Sequence[dict[str, Any]], equal_gpus: Sequence[dict[str, Any]]) -> str:
    text = [
        "## Where slos loses, and where it ties\n",
        f"Capacity at 90 %, strict, against every baseline; a tie is within {TIE:.0%}, in bursty scenarios"
        f" ({', '.join(BURSTY)}) within {BURSTY_TIE:.0%}. Equal GPUs: everybody on as many as DistServe.\n",
    ]
    cells = 0
    tables: dict[str, Table] = {}
    for profile, replicas in dict.fromkeys((r["profile"], r["asked_replicas"]) for r in capacities):
        size = f"{replicas} replica{'s' if replicas > 1 else ''}"
        tables[f"{profile}, {size}"] = capacity_table(capacities, profile, replicas)
    for profile in dict.fromkeys(r["profile"] for r in equal_gpus):
        tables[f"{profile}, equal GPUs"] = capacity_table(equal_gpus, profile, None)
    for where, table in tables.items():
        for scenario, cell in table.items():
            ours, known = cell.get("slos"), [p for p in BASELINES if cell.get(p)]
            if ours is None or not known:
                continue
            cells += 1
            margin = BURSTY_TIE if scenario in BURSTY else TIE
            for name in known:
                quotient = ours / cell[name]
                if quotient < 1.0 + margin:
                    verdict = "loses to" if quotient < 1.0 - margin else "ties with"
                    text.append(f"* {verdict} {name} in {scenario}, {where}: {quotient:.2f}x")
    if cells and len(text) == 2:
        text.append(f"* nowhere in the {cells} cells that were run")
    if not cells:
        text.append("* not known: no cell of slos was run beside a baseline")
    return "\n".join(text) + "\n"
