"""docs/evaluation.json: the rows that are known, written as soon as one is added."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulation.evaluation.behaviour import behaviour
from simulation.evaluation.jobs import Figures, learns_margin, speculates

CELL = (
    *("policy", "profile", "scenario", "asked_replicas", "seed"),
    *("changes", "variant", "noise", "margin", "routing", "fleet"),
)
"""What tells the rows of a section apart."""


BEHAVIOURS = "behaviours"


class Book:
    """The known rows by section, and what policies did by the code that they had.

    A row holds while its policy does what it did, whatever has become of the code (see behaviour.py).
    """

    def __init__(self, folder: Path) -> None:
        """Read what the folder holds; empty when there is nothing yet."""
        self._path = folder / "evaluation.json"
        content: dict[str, Any] = json.loads(self._path.read_text()) if self._path.is_file() else {}
        self._behaviours: dict[str, str] = content.pop(BEHAVIOURS, {})
        self.known: dict[str, list[Figures]] = content

    def add(self, section: str, row: Figures) -> None:
        """Keep one row, in the place of an older one for the same cell."""
        self.replace(section, merged(self.known.get(section, []), [row]))

    def replace(self, section: str, rows: Sequence[Figures]) -> None:
        """Keep these rows of a section and write the file."""
        self.known[section] = list(rows)
        self._write()

    def holds(self, section: str, row: Figures, made_of: Mapping[str, str]) -> bool:
        """Whether the row of a cell is known and still holds, given what its figures would be made of now."""
        old: Mapping[str, str] = _same_cell(self.known.get(section, []), row).get("made_of", {})
        return old.get("run") == made_of["run"] and self.behaves(row, old, made_of)

    def same_run(self, row: Figures, made_of: Mapping[str, str]) -> Figures | None:
        """What a row of any section says of the same run, and what that was made of; None without one that holds."""
        for known in (known for rows in self.known.values() for known in rows):
            old = known.get("made_of", {})
            if old.get("run") == made_of["run"] and self.behaves(row, old, made_of):
                return {name: value for name, value in known.items() if name not in CELL}
        return None

    def behaves(self, row: Figures, old: Mapping[str, str], new: Mapping[str, str]) -> bool:
        """Whether a policy does with its new code, the one that runs here, what it did with the old.

        Where the code differs and it is not known yet what the new does, the reference runs are played.
        """
        if _code(old) == _code(new):
            return True
        before = self._behaviours.get(_kind(row, old))
        return before is not None and before == self.behaviour(row, new)

    def behaviour(self, row: Figures, made_of: Mapping[str, str]) -> str:
        """What the code of a row's policy does in such runs; the reference runs are played where that is not known."""
        kind = _kind(row, made_of)
        if kind not in self._behaviours:
            self._behaviours[kind] = behaviour(row["policy"], learns_margin(row), speculates(row))
            self._write()
        return self._behaviours[kind]

    def start(self, section: str, row: Figures) -> float | None:
        """Rate to look around first: what the cell had before, else what the nearest count of replicas had."""
        found = _same_cell(self.known.get(section, []), row).get("rate_per_gpu")
        if found:
            return float(found)
        same = ("policy", "profile", "scenario")
        near = [
            (abs(other["asked_replicas"] - row["asked_replicas"]), other["rate_per_gpu"])
            for name in ("capacity", "equal-gpus")
            for other in self.known.get(name, [])
            if all(other[key] == row[key] for key in same) and other["rate_per_gpu"]
        ]
        return float(min(near)[1]) if near else None

    def _write(self) -> None:
        content = {**self.known, **({BEHAVIOURS: self._behaviours} if self._behaviours else {})}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        staging = self._path.with_suffix(".tmp")
        staging.write_text(json.dumps(content, indent=None, separators=(",", ":")).replace("},{", "},\n{") + "\n")
        staging.rename(self._path)


def _code(made_of: Mapping[str, str]) -> str:
    """The code of a policy and of the simulator, as one name."""
    return f"{made_of.get('policy')}/{made_of.get('simulator')}"


def _kind(row: Figures, made_of: Mapping[str, str]) -> str:
    """The code of a row, and which reference runs tell what it does."""
    return _code(made_of) + ("/speculation" if speculates(row) and not learns_margin(row) else "")


def _same_cell(known: Sequence[Figures], row: Figures) -> Figures:
    """The known row of the same cell; empty when there is none."""
    cell = _cell(row)
    return next((k for k in known if _cell(k) == cell), {})


def merged(known: Sequence[Figures], new: Sequence[Figures]) -> list[Figures]:
    """Known rows with new ones in the place of those for the same cell."""
    rows = {_cell(row): row for row in (*known, *new)}
    return list(rows.values())


def _cell(row: Figures) -> tuple[Any, ...]:
    return tuple(str(row.get(name)) for name in CELL)
