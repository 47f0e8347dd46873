"""Writes the tables of docs/benchmarks.md from the JSON files in docs/benchmarks/, so that no number is typed by hand.

`python -m benchmarks.render` fills what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DOCUMENT = Path("docs/benchmarks.md")
RESULTS = Path("docs/benchmarks")


def overhead(result: dict[str, Any]) -> str:
    """Throughput and TTFT on both sides."""
    ratios = result["throughput_ratios"]
    rows = [
        (
            "output tokens/s, median",
            _median(result["direct_tokens_per_s"]),
            _median(result["cluster_tokens_per_s"]),
            f"x {result['throughput_ratio_median']:.3f} (pairs {min(ratios):.3f} to {max(ratios):.3f})",
        ),
        *(
            (
                f"TTFT {name}, ms, idle",
                f"{result['direct_ttft_ms'][name]:.1f}",
                f"{result['cluster_ttft_ms'][name]:.1f}",
                f"{result['added_ttft_ms'][name]:+.1f} (of the pairs' differences)",
            )
            for name in ("p50", "p99")
        ),
    ]
    return _table(("", "AsyncLLM", "cluster", "cluster against AsyncLLM"), rows)


def sweep(result: dict[str, Any]) -> str:
    """One row per policy and rate, and the same per class."""
    head = (
        *("policy", "sessions/s", "sent", "attained", "promised", "precision"),
        *("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "margin", "step time / predicted p50", "p99"),
    )
    rows, by_class = [], []
    for row in result["rows"]:
        total = next(c for c in row["classes"] if c["application"] == "all")
        error = row["step_time_measured_over_predicted"]
        rows.append(
            (
                row["policy"],
                f"{row['rate_per_s']:g}",
                str(total["sessions"]),
                _percent(total["attainment"]),
                str(total["promised"]),
                _percent(total["guarantee_precision"]),
                *(_ms(total[name]) for name in ("ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms")),
                _ratio(row["margin"]),
                _ratio(error["p50"]),
                _ratio(error["p99"]),
            )
        )
        parts = [c for c in row["classes"] if c["application"] != "all"]
        by_class.append(
            (row["policy"], f"{row['rate_per_s']:g}", *(_percent(part["attainment"]) for part in parts)),
        )
    names = [c["application"] for c in result["rows"][0]["classes"] if c["application"] != "all"]
    engine = result["engine"]
    fit = engine["fit"]
    quality = f"; R² {fit['r2']:.3f}, held-out error p99 {fit['p99_relative_error']:.1%}" if fit else ""
    note = f"TPOT SLOs scaled by {engine['slo_scale']:g} to the engine{quality}."
    if engine["emulated"]:
        note += " The engine is emulated: these are not measurements."
    text = f"{note}\n\n{_table(head, rows)}\n\nAttainment per class:\n\n"
    text += _table(("policy", "sessions/s", *names), by_class)
    if "mean_attainment" in result:
        ranking = [(policy, f"{mean:.1%}") for policy, mean in result["mean_attainment"].items()]
        text += "\n\nMean over the rates, best first:\n\n" + _table(("policy", "attained"), ranking)
    return text


def features(result: dict[str, Any]) -> str:
    """A sweep per feature, and what became of the drafts."""
    parts = []
    for feature, found in result.items():
        drafts = [
            (row["policy"], f"{row['rate_per_s']:g}", str(row["draft_tokens"]), _percent(_share(row)))
            for row in found["rows"]
            if row["draft_tokens"]
        ]
        text = f"{feature.capitalize()}. {sweep(found)}"
        if drafts:
            text += "\n\nDrafts:\n\n" + _table(("", "sessions/s", "verified tokens", "accepted"), drafts)
        parts.append(text)
    return "\n\n".join(parts)


def _share(row: dict[str, Any]) -> float:
    return float(row["accepted_draft_tokens"] / row["draft_tokens"])


def validity(result: dict[str, Any]) -> str:
    """Both sides in neighbouring rows."""
    head = ("sessions/s", "", "requests", "attained", "promised", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "")
    rows = []
    for row in result["rows"]:
        for side in ("real", "simulated"):
            figures = row[side]
            verdict = "within bounds" if row["within"] else "outside"
            rows.append(
                (
                    f"{row['rate_per_s']:g}",
                    side,
                    str(figures["requests"]),
                    _percent(figures["attainment"]),
                    _percent(figures["promised"]),
                    *(_ms(figures[name]) for name in ("ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms")),
                    verdict if side == "simulated" else "",
                )
            )
    bounds = result["bounds"]
    points, share = bounds["attainment_points"], bounds["median_share"]
    return f"Bounds: attainment within {points:g} points, medians within {share:.0%}.\n\n{_table(head, rows)}"


def planner(result: dict[str, Any]) -> str:
    """The figures that have a target, then every admission decision and step plan."""
    goals = []
    for name, found in result["targets"].items():
        reached = "yes" if found["p99_ms"] < found["target_ms"] else "no"
        goals.append((name, f"{found['p99_ms']:.3f}", f"{found['target_ms']:g}", reached))
    rows = [
        (section, name, str(found["n"]), *(f"{found[key]:.3f}" for key in ("p50_ms", "p99_ms", "max_ms")))
        for section, figures in result.items()
        if section == "step" or section.startswith(("admission ", "place "))
        for name, found in figures.items()
    ]
    worth = [
        (
            name,
            str(found["bursts"]),
            _percent(found["share_of_unlimited"]),
            _percent(found["greedy_share_of_unlimited"]),
            _percent(found["ran_out"]),
        )
        for name, found in result["labels"].items()
    ]
    return (
        f"{_table(('what', 'p99, ms', 'goal, ms', 'reached'), goals)}\n\nAll of them:\n\n"
        f"{_table(('what', 'case', 'decisions', 'p50, ms', 'p99, ms', 'max, ms'), rows)}\n\n"
        "Value of what is admitted, as a share of what unlimited labels (8,192) would admit:\n\n"
        f"{_table(('case', 'bursts', 'default labels', 'greedy by deadline', 'labels ran out'), worth)}"
    )


def simulator(result: dict[str, Any]) -> str:
    """One row per scenario."""
    head = (
        "scenario",
        "sessions/s and GPU",
        "requests",
        "requests/min and core",
        "goal",
        "plans/request",
        "steps/request",
    )
    rows = [
        (
            name,
            f"{row['rate_per_gpu']:g}",
            f"{row['requests']:,}",
            f"{row['requests_per_minute']:,}",
            f"{row['target_per_minute']:,}",
            f"{row['decisions_per_request']:.1f}",
            f"{row['steps_per_request']:.1f}",
        )
        for name, row in result.items()
    ]
    return _table(head, rows)


def step_scheduler(result: dict[str, Any]) -> str:
    """One row per number of running requests."""
    head = (
        *("", "vLLM p50, ms", "p99", "step scheduler p50, ms", "p99"),
        *("added p50, ms", "p99", "added to the plain one p50, ms", "p99", "own code p50, ms", "p99"),
    )
    sides = ("vllm_ms", "step_scheduler_ms", "added_ms", "added_to_plain_ms", "own_code_ms")
    rows = [(name, *(f"{row[side][q]:.3f}" for side in sides for q in ("p50", "p99"))) for name, row in result.items()]
    return _table(head, rows)


def kv_transfer(result: dict[str, Any]) -> str:
    """The tables of each backend."""
    return "\n\n".join(_kv_backend(backend) for backend in result["backends"])


def _kv_backend(result: dict[str, Any]) -> str:
    """One row per length of prompt."""
    rows = [
        (
            str(row["tokens"]),
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['raw_bytes_per_s'] / 1e6:,.0f}",
            f"{row['exchange_bytes_per_s'] / 1e6:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['raw_s'] * 1e3:.1f}",
            f"{row['copies_s'] * 1e3:.1f}",
        )
        for row in result["rows"]
    ]
    head = ("tokens", "MB", f"raw {result['raw_backend']}, MB/s", f"{result['backend']}, MB/s", "against raw")
    head += ("raw, ms", "gather and scatter alone, ms")
    hidden = [
        (
            str(row["tokens"]),
            f"{row['compute_s'] * 1e3:,.0f}",
            f"{row['waits_at_end_s'] * 1e3:.1f}",
            f"{row['waits_layer_wise_s'] * 1e3:.1f}",
            _hidden(row["hidden"]),
        )
        for row in result["behind_compute"]
    ]
    columns = (
        "tokens",
        "compute, ms",
        "added by sending at the end, ms",
        "added by sending layer by layer, ms",
        "hidden",
    )
    tables = f"{_table(head, rows)}\n\nBehind compute:\n\n{_table(columns, hidden)}"
    return f"Exchange over {result['backend']}:\n\n{tables}"


def _hidden(share: float | None) -> str:
    """The part of a transfer that no prompt waits for, as far as it can be told from noise."""
    if share is None:
        return "cannot be told"
    return f"{min(share, 1.0):.0%}" if share > 0.0 else "nothing"


def disaggregated(result: dict[str, Any]) -> str:
    """TTFT of single requests on both, then the sweep."""
    rows = [
        (
            str(row["tokens"]),
            *(f"{row[side]['p50']:.0f}" for side in ("co_located_ttft_ms", "disaggregated_ttft_ms")),
            f"{row['added_ttft_ms']['p50']:+.0f}",
            f"{row['added_ttft_ms']['p90']:+.0f}",
            f"{row['handovers']} of {row['requests']}",
        )
        for row in result["alone"]
    ]
    head = ("prompt, tokens", "co-located TTFT p50, ms", "1P1D, ms", "added p50, ms", "p90", "handed over")
    return f"{_table(head, rows)}\n\nA mixed burst:\n\n{sweep(result)}"


RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "planner": planner,
    "simulator": simulator,
    "step-scheduler": step_scheduler,
    "kv-transfer": kv_transfer,
    "disaggregated": disaggregated,
    "overhead": overhead,
    "slo": sweep,
    "policies": sweep,
    "features": features,
    "validity": validity,
}


def section(whole: dict[str, Any]) -> str:
    """What stands between the markers for one result: where and how it was measured, then its tables."""
    environment = whole["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    origin = (
        f"Measured {whole['measured_at']} with `{whole['command']}` on {environment['cores']} cores of"
        f" {environment['cpu']}, {environment['memory_gib']} GiB (load average before:"
        f" {environment['load_average_1min']}); Python {environment['python']}, {packages}."
    )
    if whole.get("quick"):
        origin += " A quick run: it shows that everything works, not how fast it is."
    return f"{origin}\n\n{RENDERERS[whole['benchmark']](whole['result'])}"


def render(text: str, results: dict[str, dict[str, Any]]) -> str:
    """The document with every result between its markers; a result without markers is an error that names it."""
    for name, whole in results.items():
        marked = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not marked.search(text):
            raise ValueError(
                f"the document has no place for {name}: add `<!-- begin {name} -->` and `<!-- end {name} -->`"
            )
        filled = section(whole)
        text = marked.sub(lambda match, filled=filled: f"{match[1]}\n{filled}\n\n{match[2]}", text)
    return text


def stored(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The results in a folder, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def main() -> int:
    """Rewrite the document."""
    argparse.ArgumentParser(prog="slosctl bench render", description=__doc__).parse_args()
    DOCUMENT.write_text(render(DOCUMENT.read_text(), stored()))
    return 0


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _median(values: Sequence[float]) -> str:
    return f"{sorted(values)[len(values) // 2]:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
