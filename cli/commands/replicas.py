"""slosctl replicas: see and change the replicas of the cluster."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from cli.errors import CliError, Exit
from cli.output import done, json_option, print_json, print_table, to_dict
from cli.rpc import Connection, Target, connect
from cli.views import replica_rows
from protos.slos.v1 import admin_pb2

_RATIOS = ("p50", "p99", "largest", "margin")

CONFIRM_S = 15.0


@click.group()
def replicas() -> None:
    """See and change the replicas of the cluster."""


@replicas.command()
@json_option
@click.pass_obj
def ls(target: Target, as_json: bool) -> None:
    """List all replicas."""
    with connect(target) as connection:
        known = _list(connection)
    if as_json:
        print_json([_data(replica) for replica in known])
    else:
        print_table(*replica_rows(known), empty="No replica is registered.")


@replicas.command()
@click.argument("replica")
@json_option
@click.pass_obj
def describe(target: Target, replica: str, as_json: bool) -> None:
    """Show everything that is known about one replica."""
    with connect(target) as connection:
        found = _find(connection, replica)
    data = _data(found)
    if as_json:
        print_json(data)
        return
    time_model, step_errors = data.pop("time_model"), data.pop("step_errors")
    for name, value in data.items():
        click.echo(f"{name:<20} {value:.2f}" if isinstance(value, float) else f"{name:<20} {value}")
    quality = (time_model or {}).get("quality")
    click.echo(f"{'time_model':<20} {'none yet' if not time_model else quality or 'see --json'}")
    if step_errors:
        click.echo("\nMeasured over predicted time of steps, and the margin that each kind of batch wants:")
        rows = [
            [kind, int(errors["steps"]), *(f"{errors[name]:.2f}" for name in _RATIOS)]
            for kind, errors in step_errors.items()
        ]
        print_table(["BATCH", "STEPS", "P50", "P99", "LARGEST", "MARGIN"], rows, empty="")


@replicas.command()
@click.argument("replica")
@click.option("--wait", default=0.0, metavar="SECONDS", help="Wait until nothing runs on it.")
@json_option
@click.pass_obj
def drain(target: Target, replica: str, wait: float, as_json: bool) -> None:
    """Let a replica finish what it runs and give it nothing new."""
    with connect(target) as connection:
        answer = connection.call(connection.admin.DrainReplica, admin_pb2.ReplicaRequest(replica=replica))
        deadline = time.monotonic() + wait
        while wait and answer.state != "drained":
            if time.monotonic() > deadline:
                raise CliError(f"{replica} still runs requests after {wait:.0f} s; it goes on draining.")
            time.sleep(0.2)
            answer = _find(connection, replica)
    _changed(answer, as_json)


@replicas.command()
@click.argument("replica")
@json_option
@click.pass_obj
def undrain(target: Target, replica: str, as_json: bool) -> None:
    """Take a drained replica back into service."""
    with connect(target) as connection:
        answer = connection.call(connection.admin.UndrainReplica, admin_pb2.ReplicaRequest(replica=replica))
    _changed(answer, as_json)


@replicas.command()
@click.argument("replica")
@json_option
@click.pass_obj
def rm(target: Target, replica: str, as_json: bool) -> None:
    """Remove a drained or lost replica from the registry."""
    with connect(target) as connection:
        connection.call(connection.admin.RemoveReplica, admin_pb2.ReplicaRequest(replica=replica))
    done(as_json, "removed", replica)


@replicas.command("set-role")
@click.argument("replica")
@click.argument("role", type=click.Choice(["prefill", "decode", "both"]))
@json_option
@click.pass_obj
def set_role(target: Target, replica: str, role: str, as_json: bool) -> None:
    """Change what a replica does, without losing a request."""
    with connect(target) as connection:
        request = admin_pb2.SetReplicaRoleRequest(replica=replica, role=role)
        answer = connection.call(connection.admin.SetReplicaRole, request)
        deadline_s = time.monotonic() + CONFIRM_S
        while answer.role != role:  # the worker itself confirms it
            if time.monotonic() > deadline_s:
                raise CliError(
                    f"{replica} has not confirmed its new role within {CONFIRM_S:.0f} s; it is {answer.state}."
                )
            time.sleep(0.1)
            answer = _find(connection, replica)
    _changed(answer, as_json)


def _list(connection: Connection) -> list[admin_pb2.Replica]:
    return list(connection.call(connection.admin.ListReplicas, admin_pb2.ListReplicasRequest()).replicas)


def _find(connection: Connection, name: str) -> admin_pb2.Replica:
    known = _list(connection)
    for replica in known:
        if replica.replica == name:
            return replica
    names = ", ".join(replica.replica for replica in known) or "none"
    raise CliError(f"There is no replica {name!r}; known: {names}.", Exit.NOT_FOUND)


def _data(replica: admin_pb2.Replica) -> dict[str, Any]:
    data = to_dict(replica)
    text = data.pop("time_model_json")
    data["time_model"] = json.loads(text) if text else None
    margin = data.pop("margin_json")
    data["step_errors"] = json.loads(margin) if margin else {}
    return data


def _changed(replica: admin_pb2.Replica, as_json: bool) -> None:
    if as_json:
        print_json(_data(replica))
    else:
        click.echo(f"{replica.replica}: {replica.state}, role {replica.role}")
