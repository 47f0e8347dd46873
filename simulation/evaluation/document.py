"""docs/evaluation.md, written from the figures of its sections."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simulation.evaluation import figures
from simulation.evaluation.findings import FINDINGS
from simulation.evaluation.numbers import NO_SLO_BASELINES, capacity_table, over, ratios, spread
from simulation.evaluation.sections import BASELINES, OURS
from simulation.scenarios.catalog import PAPER_SCENARIOS

Rows = Sequence[dict[str, Any]]
POLICIES = (*BASELINES, *OURS)
NOT_RUN = "not run"
FIVE = tuple(s for s in PAPER_SCENARIOS if s != "tool-calling")

HEAD = """# Evaluation

Written by `make evaluation`; every number can be made again with that command. Do not edit: the text is in
`simulation/evaluation/`.

**What is simulated.** Everything in this file. Requests, clocks, GPUs, KV memory and links are simulated; step times
come from the hardware profiles in `simulation/profiles/` (each value marked measured, computed or assumed there).
**What is real.** The planner: admission, batches and routing are the code that runs in the controller and inside vLLM.
Real engines are in [benchmarks.md](benchmarks.md).

**How to read it.** Capacity is the highest rate of sessions per second and GPU at which at least 90 % of *all*
arrivals keep every deadline (strict: first token and every later token, no tolerance). A refused or best-effort
request counts as missed. Every search runs the same 20 minutes of trace at every rate, stretched in time, and at least
ten simulated minutes. Output lengths are unknown to the planner (an online quantile estimate), unless a table says
otherwise. Baselines run with the best of the configurations in `simulation/evaluation/settings.py`, searched on
another part of the data (`tuned.json`). DistServe's rate is per GPU of its best ratio. Differences under 5 % are ties
(15 % in the bursty scenarios coding and tool-calling).
"""


def write(known: dict[str, Any], out: Path) -> None:
    """Write evaluation.md and the figures beside it from all rows that are known; the rest is said to be missing."""
    parts = [HEAD]
    missing = []
    for name, (title, section) in _SECTIONS.items():
        rows = known.get(name)
        if rows:
            parts.append(section(rows, out) + _workload(rows))
        else:
            missing.append(f"* {title} (`--only {name}`)")
    if missing:
        parts.append("## Not run yet\n\n" + "\n".join(missing) + "\n")
    parts.append(FINDINGS)
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.md").write_text("\n".join(parts))


def _workload(rows: Rows) -> str:
    """What the rows were computed on."""
    found: dict[tuple[str, float, float], list[str]] = {}
    for row in rows:
        if "slice_s" in row:
            data = "public files" if row["public_data"] else "fitted distributions"
            cells = found.setdefault((data, row["slice_s"] / 60, row["tolerance"]), [])
            if row["scenario"] not in cells:
                cells.append(row["scenario"])
    lines = [
        f"*Workload of {', '.join(cells)}: {data}, slices of {minutes:g} minutes of trace, search step {step:.0%}.*"
        for (data, minutes, step), cells in found.items()
    ]
    return "".join(f"\n{line}\n" for line in lines)


def _capacity(rows: Rows, out: Path) -> str:
    text = ["## Capacity at 90 %, strict\n"]
    for profile in dict.fromkeys(r["profile"] for r in rows):
        for replicas in sorted({r["asked_replicas"] for r in rows if r["profile"] == profile}):
            text.append(_one_table(rows, profile, replicas))
            name = f"capacity-{profile}-{replicas}.svg"
            figures.capacity_bars(rows, profile, replicas, out / "figures" / name)
            text.append(f"![capacity](figures/{name})\n")
    return "\n".join(text)


def _one_table(rows: Rows, profile: str, replicas: int) -> str:
    table = capacity_table(rows, profile, replicas)
    policies = POLICIES
    best = f"best of {', '.join(NO_SLO_BASELINES)} (of those that were run)"
    text = [f"### {profile}, {replicas} replica{'s' if replicas > 1 else ''}\n"]
    text.append(
        "Sessions per second and GPU; in brackets the range over seeds; \\*: default configuration, not tuned.\n"
    )
    text.append(_row(["scenario", *policies]))
    text.append(_row(["---"] * (len(policies) + 1)))
    for scenario in dict.fromkeys((*PAPER_SCENARIOS, *table)):
        cell = table.get(scenario, {})
        values = []
        for policy in policies:
            limits = spread(rows, profile, policy, scenario) if replicas == 1 else None
            between = f" ({limits[0]:.2f}-{limits[1]:.2f})" if limits else ""
            untuned = "" if policy not in BASELINES or _tuned(rows, profile, policy, scenario) else " \\*"
            values.append(f"{cell[policy]:.3f}{between}{untuned}" if policy in cell else NOT_RUN)
        text.append(_row([scenario, *values]))
    text.append(f"\nOver the {best}:\n")
    text.append(_row(["scenario", *policies]))
    text.append(_row(["---"] * (len(policies) + 1)))
    for scenario, cell in table.items():
        text.append(_row([scenario, *(_ratio(ratios(cell).get(p, math.nan)) for p in policies)]))
    for label, scenarios in (("geo-mean of five, without tool-calling", FIVE), ("geo-mean of six", PAPER_SCENARIOS)):
        text.append(_row([f"**{label}**", *(_ratio(over(table, p, NO_SLO_BASELINES, scenarios)) for p in policies)]))
    done = tuple(s for s in table if all(p in table[s] for p in (*NO_SLO_BASELINES, "qoserve", "slos")))
    if done and set(done) not in (set(FIVE), set(PAPER_SCENARIOS)):
        label = f"geo-mean of the {len(done)} done so far"
        text.append(_row([f"**{label}**", *(_ratio(over(table, p, NO_SLO_BASELINES, done)) for p in policies)]))
        text.append(
            _row([f"**{label}, over qoserve**", *(_ratio(over(table, p, ("qoserve",), done)) for p in policies)])
        )
    if any("qoserve" in cell for cell in table.values()):
        text.append(_row(["**over qoserve, five**", *(_ratio(over(table, p, ("qoserve",), FIVE)) for p in policies)]))
    return "\n".join(text) + "\n"


def _tuned(rows: Rows, profile: str, policy: str, scenario: str) -> bool:
    return all(
        r.get("tuned", True) for r in rows if (r["profile"], r["policy"], r["scenario"]) == (profile, policy, scenario)
    )


def _at_99(rows: Rows, out: Path) -> str:
    profile = rows[0]["profile"]
    table = capacity_table(rows, profile, 1)
    policies = [p for p in POLICIES if any(p in cell for cell in table.values())]
    text = [f"## Capacity at 99 %, strict, {profile}, one replica\n", _row(["scenario", *policies])]
    text.append(_row(["---"] * (len(policies) + 1)))
    for scenario, cell in table.items():
        text.append(_row([scenario, *(f"{cell[p]:.3f}" if p in cell else NOT_RUN for p in policies)]))
    return "\n".join(text) + "\n"


def _paper(rows: Rows, out: Path) -> str:
    profile = rows[0]["profile"]
    table = capacity_table(rows, profile, 1)
    text = [
        f"## The paper's own conditions: {profile}, known lengths, its scoring, baselines of 2024\n",
        "The paper reports 2.2x over the better of vLLM and Sarathi (geo-mean of six scenarios).\n",
        _row(["scenario", "vllm", "sarathi", "dp", "slos", "dp / vllm", "dp / better", "slos / better"]),
        _row(["---"] * 8),
    ]
    for scenario, cell in table.items():
        better = max(cell.get("vllm", 0.0), cell.get("sarathi", 0.0))
        quotients = (_over(cell.get("dp"), cell.get("vllm")), _over(cell.get("dp"), better))
        rates = (f"{cell[p]:.3f}" if p in cell else NOT_RUN for p in ("vllm", "sarathi", "dp", "slos"))
        text.append(_row([scenario, *rates, *map(_ratio, quotients), _ratio(_over(cell.get("slos"), better))]))
    scenarios = tuple(table)
    means = (
        over(table, "dp", ("vllm",), scenarios),
        over(table, "dp", ("vllm", "sarathi"), scenarios),
        over(table, "slos", ("vllm", "sarathi"), scenarios),
    )
    text.append(_row(["**geo-mean**", "", "", "", "", *map(_ratio, means)]))
    return "\n".join(text) + "\n"


def _burst(rows: Rows, out: Path) -> str:
    text = [
        f"## A burst, coding at {rows[0]['rate_per_gpu']:.2f} sessions/s per GPU\n",
        "![burst](figures/burst.svg)\n",
        _row(["policy", "attained", "TTFT p50 / p99, ms", "TPOT p50 / p99, ms", "best-effort TTFT p50 / p99, s"]),
        _row(["---"] * 5),
    ]
    for row in rows:
        waits = "-"
        if row["policy"] in OURS and row["best_effort_ttft_ms"]:
            waits = f"{row['best_effort_ttft_ms'][0] / 1e3:.1f} / {row['best_effort_ttft_ms'][-1] / 1e3:.1f}"
        latencies = (f"{row[k][0]:,.0f} / {row[k][-1]:,.0f}" for k in ("ttft_ms", "tpot_ms"))
        text.append(_row([row["policy"], f"{row['attained']:.1%}", *latencies, waits]))
    return "\n".join(text) + "\n"


def _published(rows: Rows, out: Path) -> str:
    alone, _, apart = (r["simulated"] / r["published"] for r in rows)
    text = [
        "## How close to a published measurement\n",
        "DistServe's authors (OSDI 2024, figure 1) measured OPT-13B on A100-80GB with prompts of 512 and outputs of 64"
        " tokens: the highest rate per GPU with 90 % of TTFTs within 0.4 s and 90 % of mean TPOTs within 40 ms.\n",
        _row(["deployment", "published", "simulated", "simulated / published"]),
        _row(["---"] * 4),
    ]
    for row in rows:
        quotient = row["simulated"] / row["published"]
        text.append(_row([row["deployment"], f"{row['published']:.1f}", f"{row['simulated']:.2f}", f"{quotient:.2f}x"]))
    text.append(
        "\nThe simulated rates are too high by much the same factor everywhere: the profile holds iterations alone, not"
        " the Python, tokenizing and launches between them. Ratios between systems are what it tells: disaggregation"
        f" gains {apart / alone:.2f} times what was published. Read rates as relative, not as what a GPU will serve."
    )
    return "\n".join(text) + "\n"


def _precision(rows: Rows, out: Path) -> str:
    text = [
        f"## Are promises kept? {rows[0]['scenario']} at 95 % of each policy's capacity, noisy step times\n",
        "Precision: kept of all ever promised. Margin: factor on the planner's predictions.\n",
        _row(["policy", "noise", "margin", "attained", "precision", "promised"]),
        _row(["---"] * 6),
    ]
    for row in rows:
        shares = (f"{row[k]:.2%}" for k in ("attained", "precision", "promised"))
        text.append(_row([row["policy"], f"{row['noise']:.0%}", f"{row['margin']:.1f}", *shares]))
    return "\n".join(text) + "\n"


def _ablations(rows: Rows, out: Path) -> str:
    scenarios = list(dict.fromkeys(r["scenario"] for r in rows))
    base = {r["scenario"]: r["rate_per_gpu"] for r in rows if r["variant"] == "slos"}
    text = [
        f"## What single ingredients are worth: slos on {rows[0]['profile']}, capacity over its default\n",
        _row(["variant", *scenarios]),
        _row(["---"] * (len(scenarios) + 1)),
    ]
    for variant in dict.fromkeys(r["variant"] for r in rows):
        cells = {r["scenario"]: r["rate_per_gpu"] for r in rows if r["variant"] == variant}
        text.append(_row([variant, *(_ratio(_over(cells.get(s), base.get(s))) for s in scenarios)]))
    return "\n".join(text) + "\n"


def _extras(rows: Rows, out: Path) -> str:
    return (
        "## With speculation and prefix cache for every policy that can use them\n\n"
        + _one_table(rows, rows[0]["profile"], 1)
        + "\nBaselines verify four tokens per decode; acceptance is drawn at the profile's rate.\n"
    )


def _scale(rows: Rows, out: Path) -> str:
    figures.lines(rows, "asked_replicas", "replicas", out / "figures" / "scale.svg")
    return _pivot(rows, "asked_replicas", "## One to sixteen replicas: sessions per second and GPU", "scale.svg")


def _lengths(rows: Rows, out: Path) -> str:
    flat = [{**r, "known": r["changes"]["lengths"]} for r in rows]
    return _pivot(flat, "known", "## What knowing output lengths is worth: sessions per second and GPU", None)


def _time_error(rows: Rows, out: Path) -> str:
    figures.lines(rows, "time_error", "planner's model / truth - 1", out / "figures" / "time-error.svg")
    flat = [{**r, "error": f"{float(r['changes']['time_error']):+.0%}"} for r in rows]
    return _pivot(
        flat, "error", "## A wrong time model: sessions per second and GPU (precision in brackets)", "time-error.svg"
    )


def _pivot(rows: Rows, column: str, title: str, figure: str | None) -> str:
    columns = list(dict.fromkeys(r[column] for r in rows))
    text = [title + "\n", _row(["policy", "scenario", *map(str, columns)]), _row(["---"] * (len(columns) + 2))]
    for policy, scenario in dict.fromkeys((r["policy"], r["scenario"]) for r in rows):
        cells = {r[column]: r for r in rows if (r["policy"], r["scenario"]) == (policy, scenario)}
        values = []
        for key in columns:
            row = cells.get(key)
            precision = f" ({row['precision']:.1%})" if row and row["precision"] is not None else ""
            values.append(f"{row['rate_per_gpu']:.3f}{precision}" if row else "-")
        text.append(_row([policy, scenario, *values]))
    if figure:
        text.append(f"\n![{column}](figures/{figure})")
    return "\n".join(text) + "\n"


def _routing(rows: Rows, out: Path) -> str:
    return _pivot(rows, "routing", "## The order in which replicas are asked: sessions per second and GPU", None)


_SECTIONS: dict[str, tuple[str, Callable[[Any, Path], str]]] = {
    "capacity": ("capacity at 90 %", _capacity),
    "burst": ("the timeline of a burst", _burst),
    "published": ("a published measurement, simulated", _published),
    "paper": ("the paper's own conditions", _paper),
    "precision": ("guarantee precision under noise", _precision),
    "ablations": ("ablations of batches and admission", _ablations),
    "routing": ("ablation of routing, four replicas", _routing),
    "capacity-99": ("capacity at 99 %", _at_99),
    "extras": ("speculation and prefix cache for every policy", _extras),
    "scale": ("1, 2, 4, 8 and 16 replicas", _scale),
    "lengths": ("unknown output lengths", _lengths),
    "time-error": ("a wrong time model", _time_error),
}


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}x"


def _over(value: float | None, base: float | None) -> float:
    return value / base if value and base else math.nan
