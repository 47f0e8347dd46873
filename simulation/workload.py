"""The requests of one simulated run, as arrays: when they come, how long they are, which session they belong to."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from scheduling.types import SloClass

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows are requests, in order of session arrival; a session of several rounds holds neighbouring rows.

    arrival_s: when the row arrives; NaN for later rounds, which arrive tool_delay_s after the round before finished.
    output_tokens counts thinking_tokens in. session: index of the session (one per row where there are no rounds).
    next_row: the session's next round, or -1. shared_prefix_tokens: leading prompt tokens that equal the text of the
    session's previous round (its prompt and output).
    """

    classes: tuple[SloClass, ...]
    class_index: IntArray
    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    thinking_tokens: IntArray
    session: IntArray
    next_row: IntArray
    shared_prefix_tokens: IntArray
    tool_delay_s: FloatArray

    def __len__(self) -> int:
        """Count of requests (rounds count one each)."""
        return len(self.arrival_s)

    @property
    def sessions(self) -> int:
        """Count of sessions, the unit of arrival and of attainment."""
        return int(self.session[-1]) + 1 if len(self) else 0

    @property
    def duration_s(self) -> float:
        """From 0 to the last arrival of a session."""
        return float(np.nanmax(self.arrival_s)) if len(self) else 0.0

    def stretched(self, factor: float) -> Workload:
        """Arrival times multiplied by a factor; tool delays, lengths and order stay."""
        return replace(self, arrival_s=self.arrival_s * factor)

    def head(self, rows: int) -> Workload:
        """The first rows (whole sessions)."""
        if rows < len(self) and self.session[rows] == self.session[rows - 1]:
            raise ValueError(f"row {rows} is in the middle of a session")
        cut = {f.name: getattr(self, f.name)[:rows] for f in fields(self) if f.name != "classes"}
        return Workload(classes=self.classes, **cut)


def single_stage(
    slo_class: SloClass,
    arrival_s: FloatArray,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    thinking_tokens: IntArray | None = None,
) -> Workload:
    """A workload of independent requests of one class."""
    count = len(arrival_s)
    order = np.argsort(arrival_s, kind="stable")
    thinking = np.zeros(count, np.int64) if thinking_tokens is None else thinking_tokens
    return Workload(
        classes=(slo_class,),
        class_index=np.zeros(count, np.int64),
        arrival_s=np.asarray(arrival_s, np.float64)[order],
        prompt_tokens=np.asarray(prompt_tokens, np.int64)[order],
        output_tokens=np.asarray(output_tokens, np.int64)[order],
        thinking_tokens=np.asarray(thinking, np.int64)[order],
        session=np.arange(count, dtype=np.int64),
        next_row=np.full(count, -1, np.int64),
        shared_prefix_tokens=np.zeros(count, np.int64),
        tool_delay_s=np.zeros(count, np.float64),
    )


def merged(parts: list[Workload]) -> Workload:
    """Several workloads as one, sessions renumbered in order of their arrival."""
    classes: list[SloClass] = []
    class_maps = []
    for part in parts:
        for slo_class in part.classes:
            if slo_class not in classes:
                classes.append(slo_class)
        class_maps.append(np.array([classes.index(c) for c in part.classes], np.int64))
    row_base = np.cumsum([0] + [len(p) for p in parts])
    session_base = np.cumsum([0] + [p.sessions for p in parts])
    class_index = np.concatenate([m[p.class_index] for m, p in zip(class_maps, parts, strict=True)])
    session = np.concatenate([p.session + b for p, b in zip(parts, session_base[:-1], strict=True)])
    next_row = np.concatenate(
        [np.where(p.next_row >= 0, p.next_row + b, -1) for p, b in zip(parts, row_base[:-1], strict=True)]
    )
    arrival = np.concatenate([p.arrival_s for p in parts])
    session_arrival = np.full(int(session_base[-1]), np.inf)
    first = ~np.isnan(arrival)
    session_arrival[session[first]] = arrival[first]
    session_order = np.argsort(session_arrival, kind="stable")
    session_rank = np.empty_like(session_order)
    session_rank[session_order] = np.arange(len(session_order))
    order = np.argsort(session_rank[session], kind="stable")
    row_rank = np.empty_like(order)
    row_rank[order] = np.arange(len(order))

    def column(name: str) -> npt.NDArray[np.float64] | npt.NDArray[np.int64]:
        return np.concatenate([getattr(p, name) for p in parts])[order]

    moved_next = next_row[order]
    return Workload(
        classes=tuple(classes),
        class_index=class_index[order],
        arrival_s=arrival[order],
        prompt_tokens=column("prompt_tokens"),
        output_tokens=column("output_tokens"),
        thinking_tokens=column("thinking_tokens"),
        session=session_rank[session][order],
        next_row=np.where(moved_next >= 0, row_rank[moved_next], -1),
        shared_prefix_tokens=column("shared_prefix_tokens"),
        tool_delay_s=column("tool_delay_s"),
    )


def shifted(workload: Workload, offset_s: float, period_s: float) -> Workload:
    """The workload started offset_s later and wrapped around at period_s, sessions kept whole."""
    moved = np.mod(workload.arrival_s + offset_s, period_s)
    return merged([replace(workload, arrival_s=moved)])
