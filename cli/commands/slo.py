"""slosctl slo: the SLO classes of the cluster."""

from __future__ import annotations

import click

from cli.errors import CliError, Exit
from cli.output import done, json_option, print_json, print_table, to_dict
from cli.rpc import Connection, Target, connect
from protos.slos.v1 import admin_pb2, common_pb2


@click.group()
def slo() -> None:
    """See and change SLO classes."""


@slo.command()
@json_option
@click.pass_obj
def ls(target: Target, as_json: bool) -> None:
    """List all SLO classes."""
    with connect(target) as connection:
        classes = _list(connection)
    if as_json:
        print_json([to_dict(item) for item in classes])
        return
    columns = ["CLASS", "TTFT", "TPOT MS", "THINKING MS", "INNER MS", "VALUE", "QUANTILE", "PRECISION", "DESCRIPTION"]
    print_table(columns, [_row(item) for item in classes], empty="No SLO class is stored.")


@slo.command("set")
@click.argument("name")
@click.option("--ttft-ms", type=click.FloatRange(min=0, min_open=True), help="Time to first token.")
@click.option(
    "--ttft-slowdown",
    type=click.FloatRange(min=0, min_open=True),
    help="Time to first token as a multiple of the prompt's zero-load prefill time.",
)
@click.option("--tpot-ms", type=click.FloatRange(min=0, min_open=True), help="Time per output token.")
@click.option("--thinking-tpot-ms", type=click.FloatRange(min=0), help="The same while the model thinks; 0: none.")
@click.option("--inner-tpot-ms", type=click.FloatRange(min=0), help="The same inside a tool loop; 0: as --tpot-ms.")
@click.option("--value", type=click.FloatRange(min=0, min_open=True), help="Worth of one kept promise.")
@click.option("--length-quantile", type=click.FloatRange(0, 1), help="Quantile of output lengths to reserve for.")
@click.option("--precision-target", type=click.FloatRange(0, 1), help="Share of promises that must be kept.")
@click.option("--description", help="One line for people.")
@json_option
@click.pass_obj
def set_class(target: Target, /, name: str, as_json: bool, **changes: float | str | None) -> None:
    """Create class NAME, or change the given settings of it."""
    if changes["ttft_ms"] is not None and changes["ttft_slowdown"] is not None:
        raise CliError("Give --ttft-ms or --ttft-slowdown, not both.", Exit.USAGE)
    with connect(target) as connection:
        old = next((item for item in _list(connection) if item.name == name), None)
        wanted = _merged(old, name, changes)
        answer = connection.call(connection.admin.SetSloClass, admin_pb2.SetSloClassRequest(slo_class=wanted))
    if as_json:
        print_json(to_dict(answer))
    else:
        click.echo(
            f"{name} {'changed' if old else 'created'}: {_ttft(answer)} to first token, {answer.tpot_ms:g} ms each"
        )


@slo.command()
@click.argument("name")
@json_option
@click.pass_obj
def rm(target: Target, name: str, as_json: bool) -> None:
    """Remove a class."""
    with connect(target) as connection:
        connection.call(connection.admin.RemoveSloClass, admin_pb2.RemoveSloClassRequest(name=name))
    done(as_json, "removed", name)


def _list(connection: Connection) -> list[common_pb2.SloClass]:
    return list(connection.call(connection.admin.ListSloClasses, admin_pb2.ListSloClassesRequest()).classes)


def _merged(old: common_pb2.SloClass | None, name: str, changes: dict[str, float | str | None]) -> common_pb2.SloClass:
    """Apply the given changes to the stored class, or to a new one; CliError when a new one lacks its SLOs."""
    result = common_pb2.SloClass(name=name, value=1.0, length_quantile=0.75, precision_target=0.99)
    if old is not None:
        result.CopyFrom(old)
    elif changes["tpot_ms"] is None or (changes["ttft_ms"] is None and changes["ttft_slowdown"] is None):
        raise CliError(
            f"There is no class {name!r} yet: a new one needs --tpot-ms and either --ttft-ms or --ttft-slowdown.",
            Exit.USAGE,
        )
    for setting, value in changes.items():
        if value is not None:
            setattr(result, setting, value)
    # The two forms of a TTFT exclude each other: giving one takes the other back.
    if changes["ttft_ms"] is not None:
        result.ttft_slowdown = 0.0
    if changes["ttft_slowdown"] is not None:
        result.ttft_ms = 0.0
    return result


def _ttft(item: common_pb2.SloClass) -> str:
    return f"{item.ttft_ms:g} ms" if item.ttft_ms else f"{item.ttft_slowdown:g} x prefill"


def _row(item: common_pb2.SloClass) -> list[object]:
    return [
        item.name,
        _ttft(item),
        f"{item.tpot_ms:g}",
        f"{item.thinking_tpot_ms:g}" if item.thinking_tpot_ms else "-",
        f"{item.inner_tpot_ms:g}" if item.inner_tpot_ms else "-",
        f"{item.value:g}",
        f"{item.length_quantile:g}",
        f"{item.precision_target:g}",
        item.description,
    ]
