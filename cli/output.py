"""Answers for people (tables, lines) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

_NUMBERS = ("int", "float")


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json to a command, passed on as as_json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def console() -> Console:
    """Return a console on standard output; without a terminal, lines are long enough for any table."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=200)


def print_json(value: object) -> None:
    """Print any JSON-able value."""
    click.echo(json.dumps(value, indent=2))


def done(as_json: bool, what: str, name: str) -> None:
    """Say that something was done to what has this name, for example "removed"."""
    if as_json:
        print_json({what: name})
    else:
        click.echo(f"{name} {what}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print a table; numbers right-aligned; the text `empty` when there is no row."""
    cells = [list(row) for row in rows]
    if not cells:
        click.echo(empty)
        return
    console().print(table(columns, cells))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> Table:
    """Build a table without frame lines."""
    result = Table(box=None, pad_edge=False, title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows) and bool(rows)
        result.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        result.add_row(*[_cell(value) for value in row])
    return result


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    return str(value)


def to_dict(message: Message) -> dict[str, Any]:
    """Turn a message into plain data: every field, numbers as numbers, enum values as short lower-case words.

    Fields that are optional or messages and not set are None.
    """
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated:
            items = getattr(message, field.name)
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                result[field.name] = {str(key): items[key] for key in items}
            else:
                result[field.name] = [_plain(field, item) for item in items]
        elif field.has_presence and not message.HasField(field.name):
            result[field.name] = None
        else:
            result[field.name] = _plain(field, getattr(message, field.name))
    return result


def _plain(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return to_dict(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    return value


def enum_word(enum: Any, value: int) -> str:
    """Short name of an enum value: ADMISSION_BEST_EFFORT is "best_effort"; unspecified is "" ."""
    name = enum.values_by_number[value].name if value in enum.values_by_number else str(value)
    prefix = "".join("_" + c if c.isupper() else c.upper() for c in enum.name).lstrip("_") + "_"
    word = name.removeprefix(prefix).lower()
    return "" if word == "unspecified" else word
