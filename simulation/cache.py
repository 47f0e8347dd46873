"""Figures of runs kept on disk under a key of everything they depend on, so that a search can be interrupted.

The key holds the run's description, the text of its profile, and the code of every module that the simulator and the
policy import (comments and docstrings left out): a change of one policy leaves the results of the others valid.
"""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import asdict, astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from scheduling.registry import POLICIES
from simulation.profiles import FOLDER
from simulation.results import ClassFigures, Summary
from simulation.run import RunSpec, run

ROOT = Path(__file__).parent.parent
DEFAULT_DIR = Path(".slos") / "simulation"
ENTRY = "simulation.run"
MARGINS = "simulation.margins"
APART = ("simulation.planned_run", MARGINS)
"""Modules that most figures do not depend on. Steps run in one go change none, as tests show, and would make every
policy depend on the batches of ours; margins are learned only where the run says so."""


class ResultCache:
    """Summaries in one folder, a file each."""

    def __init__(self, folder: Path = DEFAULT_DIR) -> None:
        """The folder is made when the first result is kept."""
        self._folder = folder

    def summary(self, spec: RunSpec) -> Summary:
        """The figures of a run, played only when they are not known."""
        path = self._folder / f"{key(spec)}.json"
        if path.is_file():
            return _summary(json.loads(path.read_text()))
        summary, _ = run(spec)
        self._folder.mkdir(parents=True, exist_ok=True)
        staging = path.with_suffix(f".{id(summary)}.tmp")
        staging.write_text(json.dumps(summary.to_dict()))
        staging.rename(path)
        return summary


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run's figures depend on, as digests: its description, its policy's code, and the simulator's code.

    A row of the evaluation carries one, so that rows made by other code are told apart from those that still hold.
    """

    run: str
    policy: str
    simulator: str


def key(spec: RunSpec) -> str:
    """Equal for runs that must give equal results."""
    return digest(*astuple(origin(spec)))[:32]


def origin(spec: RunSpec) -> Origin:
    """Where the figures of a run come from."""
    described = asdict(spec)
    described["data"] = "public files" if spec.data else None
    path = FOLDER / f"{spec.profile}.json"
    profile = (path if path.is_file() else Path(spec.profile)).read_text()
    what = digest(json.dumps(described, sort_keys=True, default=str), profile)
    return Origin(what[:12], policy_version(spec.cluster.policy, spec.cluster.learn_margin), version(ENTRY))


def policy_version(policy: str, learns_margin: bool) -> str:
    """Digest of a policy's code, and of what learns its margin where one is learned."""
    own = version(POLICIES.get(policy, policy))
    return digest(own, version(MARGINS))[:12] if learns_margin else own


def digest(*texts: str) -> str:
    """SHA-256 of texts, one after the other, hexadecimal."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def version(entry: str) -> str:
    """Digest of the code of a module of ours and of all those that it imports, directly or not."""
    fitted = (Path(__file__).parent / "scenarios" / "fitted.json").read_text()
    return digest(json.dumps([sorted(modules(entry).items()), fitted]))[:12]


def modules(entry: str) -> dict[str, str]:
    """Digest by path of a module of ours and of all those that it imports, directly or not."""
    seen: dict[str, str] = {}
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        path = None if module in APART and module != entry else _path(module)
        if path is None or (name := str(path.relative_to(ROOT))) in seen:
            continue
        text = path.read_text()
        seen[name] = digest(_code(text))
        waiting.extend(_imports(text))
    return seen


def _code(text: str) -> str:
    """A module without its comments and docstrings, which change no figure."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                statement
                for statement in node.body
                if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
            ] or [ast.Pass()]
    return ast.unparse(tree)


def _imports(text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found.extend(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
    return [name for name in found if name.split(".")[0] in ("scheduling", "simulation")]


def _path(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _summary(data: dict[str, Any]) -> Summary:
    classes = tuple(
        ClassFigures(**{k: tuple(v) if isinstance(v, list) else v for k, v in c.items()}) for c in data.pop("classes")
    )
    return Summary(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}, classes=classes)
