"""docs/evaluation.md, written from the figures of its sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simulation.evaluation import figures
from simulation.evaluation.book import Book
from simulation.evaluation.capacity_tables import (
    NOT_RUN,
    POLICIES,
    Rows,
    capacity_missing,
    capacity_section,
    line,
    one_table,
    quotient,
    ratio,
)
from simulation.evaluation.findings import findings
from simulation.evaluation.fleet_tables import equal_gpus_section, pairs_section
from simulation.evaluation.jobs import code_now
from simulation.evaluation.numbers import capacity_table, over
from simulation.evaluation.sections import OURS
from simulation.scenarios.catalog import PAPER_SCENARIOS

HEAD = """# Evaluation

Written by `make evaluation`; every number can be made again with that command. Do not edit: the text is in
`simulation/evaluation/`.

**What is simulated.** Everything in this file. Requests, clocks, GPUs, KV memory and links are simulated; step times
come from the hardware profiles in `simulation/profiles/` (each value marked measured, computed or assumed there).
**What is real.** The planner: admission, batches and routing are the code that runs in the controller and inside vLLM.
Real engines are in [benchmarks.md](benchmarks.md).

**How to read it.** Capacity is the highest rate of sessions per second and GPU at which at least 90 % of *all*
arrivals keep every deadline (strict: first token and every later token, no tolerance). A refused or best-effort
request counts as missed. Every search runs the same slice of trace at every rate, stretched in time: 20 minutes of it
(unless the line under a table says less) and always at least ten simulated minutes. Output lengths are unknown to the
planner (an online quantile estimate), unless a table says otherwise. Baselines run with the best of the configurations
in `simulation/evaluation/settings.py`, searched on another part of the data (`tuned.json`); `slos`, `edf-exact` and
`dp` run with their defaults everywhere. DistServe's rate is per GPU of its best ratio. Differences under 5 % are ties
(15 % in the bursty scenarios coding and tool-calling).

**How to make it again.** `make evaluation ARGS="--data DIR"` with the public files in DIR (without: distributions
fitted to them). The most telling sections come first, every row is kept as soon as it is known, and an interrupted
evaluation goes on where it stopped; what is missing is listed as not run.
"""


def write(book: Book, out: Path) -> None:
    """Write evaluation.md and the figures beside it from all rows that are known; the rest is said to be missing."""
    known, parts = book.known, [HEAD]
    missing = []
    for name, (title, section) in _SECTIONS.items():
        rows = known.get(name)
        if rows:
            parts.append(section(rows, out) + _workload(rows) + older(book, rows))
        else:
            missing.append(f"* {title} (`--only {name}`)")
    missing += capacity_missing(known.get("capacity", []))
    if missing:
        parts.append("## Not run yet\n\n" + "\n".join(missing) + "\n")
    parts.append(findings(known))
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


def older(book: Book, rows: Rows) -> str:
    """Which rows were made by code that decided otherwise than what there is now."""
    cells = [
        f"{row['policy']} in {row['scenario']}"
        for row in rows
        if "policy" in row and not book.behaves(row, row.get("made_of", {}), code_now(row))
    ]
    return f"\n*Made before the policy's decisions last changed: {', '.join(dict.fromkeys(cells))}.*\n" if cells else ""


def _at_99(rows: Rows, out: Path) -> str:
    profile = rows[0]["profile"]
    table = capacity_table(rows, profile, 1)
    policies = [p for p in POLICIES if any(p in cell for cell in table.values())]
    text = [f"## Capacity at 99 %, strict, {profile}, one replica\n", line(["scenario", *policies])]
    text.append(line(["---"] * (len(policies) + 1)))
    for scenario, cell in table.items():
        text.append(line([scenario, *(f"{cell[p]:.3f}" if p in cell else NOT_RUN for p in policies)]))
    return "\n".join(text) + "\n"


def _paper(rows: Rows, out: Path) -> str:
    profile = rows[0]["profile"]
    table = capacity_table(rows, profile, 1)
    text = [
        f"## The paper's own conditions: {profile}, known lengths, its scoring, baselines of 2024\n",
        "The paper reports 2.2x over the better of vLLM and Sarathi (geo-mean of six scenarios).\n",
        line(["scenario", "vllm", "sarathi", "dp", "slos", "dp / vllm", "dp / better", "slos / better"]),
        line(["---"] * 8),
    ]
    policies = ("vllm", "sarathi", "dp", "slos")
    for scenario in dict.fromkeys((*PAPER_SCENARIOS, *table)):
        cell = table.get(scenario, {})
        better = max(cell.get("vllm", 0.0), cell.get("sarathi", 0.0))
        quotients = (quotient(cell.get("dp"), cell.get("vllm")), quotient(cell.get("dp"), better))
        rates = (f"{cell[p]:.3f}" if p in cell else NOT_RUN for p in policies)
        text.append(line([scenario, *rates, *map(ratio, quotients), ratio(quotient(cell.get("slos"), better))]))
    done = tuple(s for s in PAPER_SCENARIOS if set(policies) <= table.get(s, {}).keys())
    means = (
        over(table, "dp", ("vllm",), done),
        over(table, "dp", ("vllm", "sarathi"), done),
        over(table, "slos", ("vllm", "sarathi"), done),
    )
    text.append(line([f"**geo-mean of {len(done)} of six**", "", "", "", "", *map(ratio, means)]))
    text.append("\nWhy, from the plans: new tokens per step (and share of time busy) at each policy's capacity.\n")
    text += [line(["scenario", *policies]), line(["---"] * 5)]
    for scenario in table:
        at = {r["policy"]: r for r in rows if r["scenario"] == scenario and r.get("busy") is not None}
        cells = (f"{at[p]['tokens_per_step']:.0f} ({at[p]['busy']:.0%})" if p in at else "-" for p in policies)
        text.append(line([scenario, *cells]))
    text.append(
        "\nPrefill-first vLLM stops every decode for whole prompts, Sarathi holds every step to the tightest TPOT. `dp`"
        " and `slos` decide at arrival what they can keep, serve the rest as best effort, and let steps last as long as"
        " the decodes in it allow: where arrivals come in bursts, most of the gain is that a burst spoils only what was"
        " declined and not everything that waits behind it. Ratios in coding are also widened by the copies that a high"
        ' rate lays over each other (see "What is simulated").'
    )
    return "\n".join(text) + "\n"


def _burst(rows: Rows, out: Path) -> str:
    text = [
        f"## A burst, coding at {rows[0]['rate_per_gpu']:.2f} sessions/s per GPU\n",
        "![burst](figures/burst.svg)\n",
        line(["policy", "attained", "TTFT p50 / p99, ms", "TPOT p50 / p99, ms", "best-effort TTFT p50 / p99, s"]),
        line(["---"] * 5),
    ]
    for row in rows:
        waits = "-"
        if row["policy"] in OURS and row["best_effort_ttft_ms"]:
            waits = f"{row['best_effort_ttft_ms'][0] / 1e3:.1f} / {row['best_effort_ttft_ms'][-1] / 1e3:.1f}"
        latencies = (f"{row[k][0]:,.0f} / {row[k][-1]:,.0f}" for k in ("ttft_ms", "tpot_ms"))
        text.append(line([row["policy"], f"{row['attained']:.1%}", *latencies, waits]))
    return "\n".join(text) + "\n"


def _published(rows: Rows, out: Path) -> str:
    alone, _, apart = (r["simulated"] / r["published"] for r in rows)
    text = [
        "## How close to a published measurement\n",
        "DistServe's authors (OSDI 2024, figure 1) measured OPT-13B on A100-80GB with prompts of 512 and outputs of 64"
        " tokens: the highest rate per GPU with 90 % of TTFTs within 0.4 s and 90 % of mean TPOTs within 40 ms.\n",
        line(["deployment", "published", "simulated", "simulated / published"]),
        line(["---"] * 4),
    ]
    for row in rows:
        quotient = row["simulated"] / row["published"]
        text.append(line([row["deployment"], f"{row['published']:.1f}", f"{row['simulated']:.2f}", f"{quotient:.2f}x"]))
    text.append(
        "\nThe simulated rates are too high by much the same factor everywhere: the profile holds iterations alone, not"
        " the Python, tokenizing and launches between them. Ratios between systems are what it tells: disaggregation"
        f" gains {apart / alone:.2f} times what was published. Read rates as relative, not as what a GPU will serve."
    )
    return "\n".join(text) + "\n"


def _precision(rows: Rows, out: Path) -> str:
    text = [
        f"## Are promises kept? {rows[0]['scenario']} at 95 % of each policy's capacity, noisy step times\n",
        "Precision: kept of all ever promised. Margin: factor on the planner's predictions; learned: as the controller"
        " does, from the steps and promises of the run itself (its first steps included).\n",
        line(["policy", "noise", "margin", "attained", "precision", "promised"]),
        line(["---"] * 6),
    ]
    for row in rows:
        shares = (f"{row[k]:.2%}" for k in ("attained", "precision", "promised"))
        margin = row["margin"] if isinstance(row["margin"], str) else f"{row['margin']:.1f}"
        text.append(line([row["policy"], f"{row['noise']:.0%}", margin, *shares]))
    return "\n".join(text) + "\n"


def _ablations(rows: Rows, out: Path) -> str:
    scenarios = list(dict.fromkeys(r["scenario"] for r in rows))
    base = {r["scenario"]: r["rate_per_gpu"] for r in rows if r["variant"] == "slos"}
    text = [
        f"## What single ingredients are worth: slos on {rows[0]['profile']}, capacity over its default\n",
        line(["variant", *scenarios]),
        line(["---"] * (len(scenarios) + 1)),
    ]
    for variant in dict.fromkeys(r["variant"] for r in rows):
        cells = {r["scenario"]: r["rate_per_gpu"] for r in rows if r["variant"] == variant}
        text.append(line([variant, *(ratio(quotient(cells.get(s), base.get(s))) for s in scenarios)]))
    return "\n".join(text) + "\n"


def _extras(rows: Rows, out: Path) -> str:
    best: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        cell = (row["policy"], row["scenario"])
        if cell not in best or row["rate_per_gpu"] > best[cell]["rate_per_gpu"]:
            best[cell] = row
    return (
        "## With speculation and prefix cache for every policy that can use them\n\n"
        + one_table(list(best.values()), rows[0]["profile"], 1)
        + "\nBaselines verify two or four tokens per decode, or do without, whichever carries most; "
        "acceptance is drawn at the profile's rate.\n"
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
    text = [title + "\n", line(["policy", "scenario", *map(str, columns)]), line(["---"] * (len(columns) + 2))]
    for policy, scenario in dict.fromkeys((r["policy"], r["scenario"]) for r in rows):
        cells = {r[column]: r for r in rows if (r["policy"], r["scenario"]) == (policy, scenario)}
        values = []
        for key in columns:
            row = cells.get(key)
            precision = f" ({row['precision']:.1%})" if row and row["precision"] is not None else ""
            values.append(f"{row['rate_per_gpu']:.3f}{precision}" if row else "-")
        text.append(line([policy, scenario, *values]))
    if figure:
        text.append(f"\n![{column}](figures/{figure})")
    return "\n".join(text) + "\n"


def _routing(rows: Rows, out: Path) -> str:
    return _pivot(rows, "routing", "## The order in which replicas are asked: sessions per second and GPU", None)


_SECTIONS: dict[str, tuple[str, Callable[[Any, Path], str]]] = {
    "capacity": ("capacity at 90 %", capacity_section),
    "equal-gpus": ("everybody on as many GPUs as DistServe", equal_gpus_section),
    "pairs": ("admission over pairs, and mixed fleets", pairs_section),
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
