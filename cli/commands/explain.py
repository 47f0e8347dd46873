"""slosctl explain: why a request was promised or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cli.output import json_option, print_json
from cli.plan_plot import draw
from cli.rpc import Target, connect
from protos.slos.v1 import admin_pb2

LONGEST_LIST = 8


@click.command()
@click.argument("request_id", metavar="REQUEST")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw budget and demand into a PNG file.")
@json_option
@click.pass_obj
def explain(target: Target, request_id: str, plot: Path | None, as_json: bool) -> None:
    """Show the numbers of the plan that promised REQUEST, or did not."""
    with connect(target) as connection:
        answer = connection.call(connection.admin.Explain, admin_pb2.ExplainRequest(request_id=request_id))
    plan = json.loads(answer.plan_json or "{}")
    if plot is not None:
        draw(plan, f"{request_id}: {answer.summary}", plot)
    if as_json:
        print_json({"request_id": answer.request_id, "summary": answer.summary, "plan": plan})
        return
    click.echo(answer.summary)
    for line in lines_of(plan):
        click.echo(line)
    if plot is not None:
        click.echo(f"plot written to {plot}")


def lines_of(value: Any, indent: int = 1) -> list[str]:
    """Lay nested data out as indented lines; long lists are cut and say so."""
    pad = "  " * indent
    lines: list[str] = []
    items = value.items() if isinstance(value, dict) else ((f"[{i}]", item) for i, item in enumerate(value))
    for number, (name, item) in enumerate(items):
        if isinstance(value, list) and number == LONGEST_LIST:
            lines.append(f"{pad}... {len(value) - LONGEST_LIST} more (--json shows all)")
            break
        label = str(name).replace("_", " ")
        if isinstance(item, dict) or (isinstance(item, list) and any(isinstance(part, dict | list) for part in item)):
            if item:
                lines.append(f"{pad}{label}:")
                lines += lines_of(item, indent + 1)
        else:
            lines.append(f"{pad}{label}: {_short(item)}")
    return lines


def _short(item: Any) -> str:
    if isinstance(item, float):
        return f"{item:.4g}"
    if isinstance(item, list):
        shown = ", ".join(_short(part) for part in item[:LONGEST_LIST])
        return shown + (f", ... {len(item) - LONGEST_LIST} more" if len(item) > LONGEST_LIST else "")
    return str(item)
