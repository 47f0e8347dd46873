"""slosctl requests: what runs and what ran."""

from __future__ import annotations

import click

from cli.output import done, json_option, print_json, print_table, to_dict
from cli.rpc import Target, connect
from cli.views import outcome_text, promise_text, request_rows, result_word
from protos.slos.v1 import admin_pb2, client_pb2


@click.group()
def requests() -> None:
    """See and cancel requests."""


@requests.command()
@click.option("--limit", default=20, type=click.IntRange(1, 10_000), show_default=True, help="Most entries to show.")
@click.option("--running", is_flag=True, help="Only requests that are not finished.")
@json_option
@click.pass_obj
def ls(target: Target, limit: int, running: bool, as_json: bool) -> None:
    """List running and recent requests, newest first."""
    with connect(target) as connection:
        request = admin_pb2.ListRequestsRequest(limit=limit, running_only=running)
        known = connection.call(connection.admin.ListRequests, request).requests
    if as_json:
        print_json([to_dict(item) for item in known])
    else:
        print_table(*request_rows(known), empty="No request runs." if running else "No request yet.")


@requests.command()
@click.argument("request_id", metavar="REQUEST")
@json_option
@click.pass_obj
def show(target: Target, request_id: str, as_json: bool) -> None:
    """Show one request with its history."""
    with connect(target) as connection:
        info = connection.call(connection.admin.GetRequest, admin_pb2.GetRequestRequest(request_id=request_id))
    if as_json:
        print_json(to_dict(info))
        return
    result = result_word(info)
    click.echo(f"{info.request_id}  tenant {info.tenant}" + (f", session {info.session_id}" if info.session_id else ""))
    click.echo(f"{info.phase}{': ' + result if result else ''}; arrived {info.age_s:.1f} s ago")
    click.echo(f"{info.prompt_tokens} prompt tokens, {info.output_tokens} output tokens")
    click.echo(promise_text(info.promise))
    if info.HasField("outcome"):
        click.echo(outcome_text(info.outcome))
    for line in info.history:
        click.echo(f"  {line}")


@requests.command()
@click.argument("request_id", metavar="REQUEST")
@json_option
@click.pass_obj
def cancel(target: Target, request_id: str, as_json: bool) -> None:
    """Stop a running request and free what it holds."""
    with connect(target) as connection:
        connection.call(connection.client.Cancel, client_pb2.CancelRequest(request_id=request_id))
    done(as_json, "cancelled", request_id)
