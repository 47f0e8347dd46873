"""slosctl status: one picture of the cluster."""

from __future__ import annotations

import click

from cli.errors import CliError, Exit
from cli.output import console as make_console
from cli.output import json_option, print_json, table, to_dict
from cli.rpc import Target, connect
from cli.views import class_rows, replica_rows
from protos.slos.v1 import admin_pb2


@click.command()
@click.option("--check", is_flag=True, help="Exit with 3 unless Redis answers and a replica is ready.")
@json_option
@click.pass_obj
def status(target: Target, check: bool, as_json: bool) -> None:
    """Show replicas, load, and what was promised and kept per class."""
    with connect(target) as connection:
        answer = connection.call(connection.admin.GetStatus, admin_pb2.GetStatusRequest())
    if as_json:
        print_json(to_dict(answer))
    else:
        show(answer, connection.address)
    if check:
        if not answer.redis_ok:
            raise CliError("Redis does not answer: new requests are refused until it is back.", Exit.UNREACHABLE)
        if not any(replica.state == "ready" for replica in answer.replicas):
            raise CliError("No replica is ready; see `slosctl replicas ls`.", Exit.UNREACHABLE)


def show(answer: admin_pb2.GetStatusResponse, address: str) -> None:
    """Print the picture for people."""
    console = make_console()
    ready = sum(replica.state == "ready" for replica in answer.replicas)
    models = ", ".join(answer.models) or "none yet"
    console.print(f"[bold]{address}[/bold]  policy {answer.policy}, models {models}, up {answer.uptime_s:.0f} s")
    redis = "ok" if answer.redis_ok else "[red]no answer: new requests get 503 until it is back[/red]"
    console.print(f"Redis {redis};  replicas {ready} of {len(answer.replicas)} ready")
    console.print(
        f"Running {answer.running_standard} with a promise, {answer.running_best_effort} best effort;"
        f"  {answer.queued_best_effort} wait in the best-effort queue"
    )
    if answer.replicas:
        console.print()
        console.print(table(*replica_rows(answer.replicas)))
    if answer.classes:
        console.print()
        console.print(table(*class_rows(answer.classes)))
    if any(replica.emulated for replica in answer.replicas):
        console.print("\nEmulated replicas sleep by a time model: their times are no measurements.")
