"""The report of a run: a table for the terminal, and one HTML file with everything inside it."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from loadtest.records import Record
from loadtest.summary import TOTAL, ClassSummary

_COLOURS = {
    "chatbot": "#4477aa",
    "coding": "#ee6677",
    "summarization": "#228833",
    "tool": "#ccbb44",
    "reasoning": "#aa3377",
}
_HEADINGS: dict[str, str] = {
    "class": "class",
    "sessions": "sessions sent; a session is one request, or the rounds of a tool loop",
    "requests": "requests sent",
    "promised": "told that their SLOs are guaranteed",
    "kept": "promised and kept, share of the promised",
    "attained": "sessions that met their SLOs, promised or not, share of all sent",
    "TTFT p50": "median time to first token, ms, controller's clock",
    "TTFT p99": "99th percentile of the same",
    "TPOT p50": "median over requests of the mean time per output token, ms",
    "TPOT p99": "99th percentile of the same",
    "refused": "refused at once",
    "lost": "sessions without an answer",
}


_TABLE_WIDTH = 120


def cells(row: ClassSummary) -> list[str]:
    """Text of one row, in the order of the headings."""

    def share(part: int, whole: int) -> str:
        return f"{part} ({part / whole:.0%})" if whole else "-"

    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}"

    return [
        row.application,
        str(row.sessions),
        str(row.requests),
        str(row.promised),
        share(row.kept, row.promised),
        share(row.attained, row.sessions),
        ms(row.ttft_p50_ms),
        ms(row.ttft_p99_ms),
        ms(row.tpot_p50_ms),
        ms(row.tpot_p99_ms),
        str(row.refused),
        str(row.sessions_lost),
    ]


def print_table(rows: Sequence[ClassSummary], title: str, console: Console | None = None) -> None:
    """Print the table per class."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*cells(row), style="bold" if row.application == TOTAL else "")
    console = console or Console()
    if not console.is_terminal:
        # A file or a pipe has no width of its own; nothing may be cut off there.
        console.width = max(console.width, _TABLE_WIDTH)
    console.print(table)


def write_json(path: Path, facts: dict[str, Any], rows: Sequence[ClassSummary], records: Sequence[Record]) -> None:
    """Write everything a program may want: facts of the run, the table, every request."""
    data = {"facts": facts, "classes": [asdict(r) for r in rows], "records": [r.to_dict() for r in records]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")


def write_html(path: Path, facts: dict[str, Any], rows: Sequence[ClassSummary], records: Sequence[Record]) -> None:
    """Write one self-contained file: facts, table, plots (inline SVG), slowest requests."""
    plots: list[tuple[str, Callable[[Axes, Sequence[Record]], None]]] = [
        ("Requests sent and running", _timeline),
        ("Promised, kept and attained per class", lambda axes, _: _bars(axes, rows)),
        ("Time to first token as a share of its SLO", _ttft),
        ("Latest token against its due line", _lateness),
    ]
    figures = "\n".join(
        f"<figure>{_svg(draw, records)}<figcaption>{html.escape(title)}</figcaption></figure>" for title, draw in plots
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Load test</title>"
        f"<style>{_STYLE}</style><h1>Load test: {html.escape(str(facts.get('scenario', '')))}</h1>"
        f"{_note(facts)}{_table(rows)}{figures}<h2>Facts of the run</h2>{_facts(facts)}"
        f"<h2>All classes, all numbers</h2>{_all_numbers(rows)}</html>\n"
    )


_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}figure{display:inline-block;margin:0;width:49%;"
    "min-width:24rem}figure svg{width:100%;height:auto}figcaption{color:#555}"
    ".note{background:#fff3cd;padding:.5rem 1rem}"
)


def _note(facts: dict[str, Any]) -> str:
    if not facts.get("emulated"):
        return ""
    return "<p class='note'>The engines are emulated: they sleep instead of computing. These are not measurements.</p>"


def _table(rows: Sequence[ClassSummary]) -> str:
    head = "".join(f"<th title='{html.escape(about)}'>{name}</th>" for name, about in _HEADINGS.items())
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells(row)) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _facts(facts: dict[str, Any]) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items()
    )
    return f"<table>{lines}</table>"


def _all_numbers(rows: Sequence[ClassSummary]) -> str:
    head = "".join(f"<th>{html.escape(row.application)}</th>" for row in rows)
    lines = []
    for field in fields(ClassSummary)[1:]:
        values = [getattr(row, field.name) for row in rows]
        texts = ["-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in values]
        lines.append(f"<tr><td>{field.name}</td>" + "".join(f"<td>{t}</td>" for t in texts) + "</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def _svg(draw: Callable[[Axes, Sequence[Record]], None], records: Sequence[Record]) -> str:
    with mpl.rc_context({"svg.hashsalt": "slos", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        draw(figure.add_subplot(), records)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _applications(records: Sequence[Record]) -> list[str]:
    return sorted({r.application for r in records})


def _timeline(axes: Axes, records: Sequence[Record]) -> None:
    if not records:
        return
    ends = [r.sent_s + (r.token_times_s[-1] if r.token_times_s else 0.0) for r in records]
    for name in _applications(records):
        sent = sorted(r.sent_s for r in records if r.application == name)
        axes.plot(sent, range(1, len(sent) + 1), drawstyle="steps-post", color=_COLOURS.get(name), label=name)
    changes = sorted([(r.sent_s, 1) for r in records] + [(end, -1) for end in ends])
    running, level = [], 0
    for _, change in changes:
        level += change
        running.append(level)
    axes.fill_between([at for at, _ in changes], running, step="post", color="#bbbbbb", alpha=0.5, label="running")
    axes.set(xlabel="seconds into the run", ylabel="requests")
    axes.legend(frameon=False, fontsize=8)


def _bars(axes: Axes, rows: Sequence[ClassSummary]) -> None:
    shown = [r for r in rows if r.requests]
    for offset, (label, colour) in enumerate((("promised", "#bbbbbb"), ("kept", "#4477aa"), ("attained", "#228833"))):
        values = [getattr(r, label) / (r.sessions if label == "attained" else r.requests) for r in shown]
        axes.bar([i + (offset - 1) * 0.27 for i in range(len(shown))], values, 0.25, color=colour, label=label)
    axes.set_xticks(range(len(shown)), [r.application for r in shown], rotation=20)
    axes.set(ylim=(0, 1.02), ylabel="share of what was sent")
    axes.legend(frameon=False, fontsize=8)


def _ttft(axes: Axes, records: Sequence[Record]) -> None:
    for name in _applications(records):
        points = [
            (r.sent_s, r.outcome.ttft_ms / r.promise.ttft_ms, r.promise.standard)
            for r in records
            if r.application == name and r.outcome and r.promise and r.promise.ttft_ms > 0 and r.token_times_s
        ]
        for standard, marker in ((True, "o"), (False, "x")):
            chosen = [(at, ratio) for at, ratio, s in points if s is standard]
            if chosen:
                label = name if standard else f"{name}, best effort"
                axes.scatter(*zip(*chosen, strict=True), s=14, marker=marker, color=_COLOURS.get(name), label=label)
    axes.axhline(1.0, color="#222222", linewidth=0.8)
    axes.set(xlabel="sent, seconds into the run", ylabel="TTFT / SLO", yscale="log")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7)


def _lateness(axes: Axes, records: Sequence[Record]) -> None:
    for name in _applications(records):
        late = sorted(r.outcome.worst_lateness_ms for r in records if r.application == name and r.outcome)
        if late:
            shares = [(i + 1) / len(late) for i in range(len(late))]
            axes.plot(late, shares, drawstyle="steps-post", color=_COLOURS.get(name), label=name)
    axes.axvline(0.0, color="#222222", linewidth=0.8)
    axes.set(xlabel="worst lateness of any token, ms (left of 0: in time)", ylabel="share of requests", ylim=(0, 1.02))
    axes.set_xscale("symlog", linthresh=100.0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
