"""docs/evaluation.json: the rows that are known, written as soon as one is added."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from simulation.evaluation.jobs import Figures

CELL = (
    *("policy", "profile", "scenario", "asked_replicas", "seed"),
    *("changes", "variant", "noise", "margin", "routing", "fleet"),
)
"""What tells the rows of a section apart."""


class Stale(Enum):
    """How much of what a row depends on has changed; UNKNOWN: there is none, or its run or policy is another one."""

    NO = "no"
    SIMULATOR = "only the simulator"
    UNKNOWN = "unknown"


class Book:
    """The known rows by section."""

    def __init__(self, folder: Path) -> None:
        """Read what the folder holds; empty when there is nothing yet."""
        self._path = folder / "evaluation.json"
        self.known: dict[str, list[Figures]] = json.loads(self._path.read_text()) if self._path.is_file() else {}

    def add(self, section: str, row: Figures) -> None:
        """Keep one row, in the place of an older one for the same cell."""
        self.replace(section, merged(self.known.get(section, []), [row]))

    def replace(self, section: str, rows: Sequence[Figures]) -> None:
        """Keep these rows of a section and write the file."""
        self.known[section] = list(rows)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        staging = self._path.with_suffix(".tmp")
        staging.write_text(json.dumps(self.known, indent=None, separators=(",", ":")).replace("},{", "},\n{") + "\n")
        staging.rename(self._path)


def stale(known: Sequence[Figures], row: Figures, made_of: Mapping[str, str]) -> Stale:
    """Whether the known row of a cell still holds, given what its figures would be made of now."""
    old: Mapping[str, str] = _same_cell(known, row).get("made_of", {})
    if (old.get("run"), old.get("policy")) != (made_of["run"], made_of["policy"]):
        return Stale.UNKNOWN
    return Stale.NO if old["simulator"] == made_of["simulator"] else Stale.SIMULATOR


def rate_of(known: Sequence[Figures], row: Figures) -> float | None:
    """Rate that was found for a cell before, by whatever code: where to look first."""
    return _same_cell(known, row).get("rate_per_gpu") or None


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
