"""slosctl top: the cluster, live."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cli.errors import CliError, Exit
from cli.output import json_option, table, to_dict
from cli.rpc import Connection, Target, connect
from cli.views import class_rows, replica_rows, request_rows
from protos.slos.v1 import admin_pb2


@click.command()
@click.option("--interval", default=1.0, type=click.FloatRange(0.1, 60), show_default=True, metavar="SECONDS")
@click.option("--count", default=0, type=click.IntRange(min=0), metavar="N", help="Stop after N pictures; 0: Ctrl-C.")
@json_option
@click.pass_obj
def top(target: Target, interval: float, count: int, as_json: bool) -> None:
    """Show replicas, classes and running requests, renewed every second; with --json one line for each picture."""
    if as_json:
        _lines(target, interval, count)
        return
    with connect(target) as connection, Live(auto_refresh=False, screen=sys.stdout.isatty() and not count) as live:
        shown = 0
        view = _picture(connection)
        try:
            while True:
                live.update(view, refresh=True)
                shown += 1
                if count and shown >= count:
                    return
                time.sleep(interval)
                view = _renewed(connection)
        except KeyboardInterrupt:
            return


def _lines(target: Target, interval: float, count: int) -> None:
    """Print what there is as one line of JSON, again and again."""
    with connect(target) as connection, contextlib.suppress(KeyboardInterrupt):
        for shown in itertools.count(1):
            status, running = _asked(connection)
            picture = {**to_dict(status), "running": [to_dict(request) for request in running.requests]}
            click.echo(json.dumps(picture))
            if shown == count:
                return
            time.sleep(interval)


def _renewed(connection: Connection) -> Group:
    """Draw the picture again; a controller that is away for a moment is said, not fatal."""
    try:
        return _picture(connection)
    except CliError as error:
        if error.exit_code != Exit.UNREACHABLE:
            raise
        return Group(Text(error.message, style="red"))


def _asked(connection: Connection) -> tuple[admin_pb2.GetStatusResponse, admin_pb2.ListRequestsResponse]:
    running = admin_pb2.ListRequestsRequest(limit=20, running_only=True)
    return (
        connection.call(connection.admin.GetStatus, admin_pb2.GetStatusRequest()),
        connection.call(connection.admin.ListRequests, running),
    )


def _picture(connection: Connection) -> Group:
    status, running = _asked(connection)
    head = (
        f"{connection.address}   policy {status.policy}   up {status.uptime_s:.0f} s   "
        f"running {status.running_standard} promised + {status.running_best_effort} best effort   "
        f"queue {status.queued_best_effort}"
    )
    if status.kv_handovers or status.kv_recomputed:
        head += f"   KV handed over {status.kv_handovers}, recomputed {status.kv_recomputed}"
    parts: list[RenderableType] = [Text(head, style="bold")]
    if not status.redis_ok:
        parts.append(Text("Redis does not answer: new requests get 503 until it is back", style="red"))
    if status.replicas:
        parts += [Text(), table(*replica_rows(status.replicas))]
    if status.classes:
        parts += [Text(), table(*class_rows(status.classes))]
    if running.requests:
        parts += [Text(), table(*request_rows(running.requests))]
    return Group(*parts)
