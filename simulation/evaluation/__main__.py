"""`python -m simulation.evaluation`: regenerate docs/evaluation.md and its figures.

Every run is kept in the cache, and every row in docs/evaluation.json as soon as it is known, with digests of what it
depends on: its configuration, the code of its policy, and the code of the simulator. An interrupted evaluation goes on
where it stopped. Rows that still hold are left alone: those made by the code there is now, and those of other code that
decided the same in the reference runs (behaviour.py). `--only NAME` is for one section, `--again` computes what holds
once more, `--render` writes the document from what there is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from simulation.cache import DEFAULT_DIR
from simulation.evaluation import document, published
from simulation.evaluation.book import Book
from simulation.evaluation.bursts import burst_figure
from simulation.evaluation.jobs import Effort, Figures, Search, Task, code_now, made_of, perform
from simulation.evaluation.sections import SECTIONS, Job, Scope, stages
from simulation.parallel import cores, run_all
from simulation.scenarios.sources import SLICE_S

NAMES = ("burst", "published", *SECTIONS)
QUICK = ("capacity", "burst", "published", "paper", "precision")


def main() -> None:
    """Compute the sections that are asked for, writing the document after every stage."""
    parser = argparse.ArgumentParser(prog="python -m simulation.evaluation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small grid on short slices, to see that all works")
    parser.add_argument("--only", action="append", choices=NAMES, help="compute these sections")
    parser.add_argument("--again", action="store_true", help="compute rows again that still hold")
    parser.add_argument("--render", action="store_true", help="compute nothing, write the document from what is known")
    parser.add_argument("--data", help="folder with the public workload files; fitted distributions without it")
    parser.add_argument("--out", type=Path, help="folder of evaluation.md; default: docs, .slos/evaluation for --quick")
    parser.add_argument("--cache", default=str(DEFAULT_DIR), help="folder of finished runs")
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--profile", action="append", help="default: a100-opt-13b-kv and a100-opt-7b")
    parser.add_argument("--scenario", action="append", help="default: the six of the paper")
    parser.add_argument("--policy", action="append", help="default: all")
    parser.add_argument("--replicas", action="append", type=int, help="default: 1 and 4")
    parser.add_argument("--seeds", type=int, default=3, help="seeds on two of the scenarios, one elsewhere")
    parser.add_argument("--slice-minutes", type=float, default=SLICE_S / 60, help="minutes of trace; default: 20")
    given = parser.parse_args()
    scope = _scope(given)
    effort = Effort(given.data, given.cache, slice_s=60 * given.slice_minutes, processes=given.processes)
    out: Path = given.out or Path("docs")
    if given.quick:
        out = given.out or Path(".slos/evaluation")
        scope = Scope(("a100-opt-13b-kv",), ("chatbot", "coding"), ("vllm-v1", "qoserve", "slos"), (1,), 1)
        effort = Effort(given.data, given.cache, slice_s=40.0, tolerance=0.25, processes=given.processes)
    book = Book(out)
    plan = [(n, s) for n, s in stages(scope) if n in (given.only or (QUICK if given.quick else NAMES))]
    for name, part in [] if given.render else plan:
        if name in SECTIONS:
            jobs = SECTIONS[name](part, book.known)
            for job in [] if given.quick else jobs:
                book.behaviour(job.row, code_now(job.row))
            fill(book, name, jobs, effort, again=given.again)
        elif name == "burst":
            capacities = book.known.get("capacity", [])
            book.replace(name, burst_figure(part, effort, capacities, out / "figures" / "burst.svg"))
        else:
            book.replace(name, published.rows(500 if given.quick else 4000))
        document.write(book, out)
    document.write(book, out)


def fill(book: Book, name: str, jobs: list[Job], effort: Effort, again: bool = False) -> None:
    """Compute a section's rows that are missing or do not hold, or all again; each is kept as soon as it is known.

    What another section found by the same run is taken from there.
    """
    how = {"slice_s": effort.slice_s, "tolerance": effort.tolerance, "public_data": bool(effort.data)}
    made = [made_of(job.work, effort) for job in jobs]
    wanted = []
    for k, job in enumerate(jobs):
        if again or not book.holds(name, job.row, made[k]):
            known = None if again else book.same_run(job.row, made[k])
            if known is None:
                wanted.append(k)
            else:
                book.add(name, {**job.row, **known})

    def keep(index: int, figures: Figures) -> None:
        number = wanted[index]
        book.add(name, {**jobs[number].row, **how, **figures, "made_of": made[number]})

    tasks = [Task(jobs[number].work, effort, book.start(name, jobs[number].row)) for number in wanted]
    if tasks:
        run_all(perform, tasks, name, _name, effort.processes, effort.quiet, keep)


def _name(task: Task) -> str:
    return task.job.name if isinstance(task.job, Search) else task.job.search.name


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
