"""`python -m simulation.evaluation`: regenerate docs/evaluation.md and its figures.

Every run is kept in the cache, so an interrupted evaluation goes on where it stopped, and a change of one policy
costs only that policy's runs. Sections already computed are kept in docs/evaluation.json: `--only NAME` renews one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from simulation.cache import DEFAULT_DIR
from simulation.evaluation import document, sections
from simulation.evaluation.bursts import burst_figure
from simulation.evaluation.jobs import Effort
from simulation.evaluation.sections import Scope
from simulation.parallel import cores

STANDARD = ("capacity", "capacity-99", "paper", "burst", "precision", "ablations", "extras")
QUICK = ("capacity", "paper", "burst", "precision")
SENSITIVITY = tuple(sections.SENSITIVITY)


def main() -> None:
    """Compute the sections that are asked for, then write the document from all that are known."""
    parser = argparse.ArgumentParser(prog="python -m simulation.evaluation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small grid on short slices, to see that all works")
    parser.add_argument("--only", action="append", choices=(*STANDARD, *SENSITIVITY), help="compute these sections")
    parser.add_argument("--data", help="folder with the public workload files; fitted distributions without it")
    parser.add_argument("--out", type=Path, help="folder of evaluation.md; default: docs, .slos/evaluation for --quick")
    parser.add_argument("--cache", default=str(DEFAULT_DIR), help="folder of finished runs")
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--profile", action="append", help="default: a100-opt-13b-kv and a100-opt-7b")
    parser.add_argument("--scenario", action="append", help="default: the six of the paper")
    parser.add_argument("--policy", action="append", help="default: all")
    parser.add_argument("--replicas", action="append", type=int, help="default: 1 and 4")
    parser.add_argument("--seeds", type=int, default=3, help="seeds on two of the scenarios, one elsewhere")
    given = parser.parse_args()
    scope, effort = _scope(given), Effort(given.data, given.cache, processes=given.processes)
    out: Path = given.out or Path("docs")
    if given.quick:
        out = given.out or Path(".slos/evaluation")
        scope = Scope(("a100-opt-13b-kv",), ("chatbot", "coding"), ("vllm-v1", "qoserve", "slos"), (1,), 1)
        effort = Effort(given.data, given.cache, slice_s=40.0, tolerance=0.25, processes=given.processes)
    path = out / "evaluation.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name in given.only or (QUICK if given.quick else STANDARD):
        known[name] = compute(name, scope, effort, known, out)
        known.setdefault("effort", {})[name] = {
            "data": "public files" if effort.data else "fitted distributions",
            "slice_s": effort.slice_s,
            "tolerance": effort.tolerance,
        }
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1) + "\n")
        document.write(known, out)


def compute(name: str, scope: Scope, effort: Effort, known: dict[str, Any], out: Path) -> Any:
    """One section's figures."""
    if name == "capacity":
        return sections.merged(known.get("capacity", []), sections.capacity_tables(scope, effort))
    if name == "capacity-99":
        return sections.at_99(scope, effort)
    if name == "paper":
        return sections.paper_conditions(scope, effort)
    if name == "burst":
        return burst_figure(scope, effort, known.get("capacity", []), out / "figures" / "burst.svg")
    if name == "precision":
        return sections.precision(scope, effort, known.get("capacity", []))
    if name == "ablations":
        return sections.ablations(scope, effort)
    if name == "extras":
        return sections.extras(scope, effort)
    return sections.SENSITIVITY[name](scope, effort)


def _scope(given: argparse.Namespace) -> Scope:
    default = Scope()
    return Scope(
        tuple(given.profile or default.profiles),
        tuple(given.scenario or default.scenarios),
        tuple(given.policy or default.policies),
        tuple(given.replicas or default.replicas),
        given.seeds,
    )


if __name__ == "__main__":
    main()
