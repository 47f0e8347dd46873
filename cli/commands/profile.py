"""slosctl profile: how well the cluster knows the step times of its engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cli.errors import CliError, Exit
from cli.output import json_option, print_json, print_table
from cli.rpc import Target, connect
from protos.slos.v1 import admin_pb2
from scheduling.time_model import LINE_TERMS, TimeModel

_MEANING = {
    "constant": "per step",
    "new_tokens": "per token computed (prefill, decode, draft)",
    "requests": "per request in the step",
    "decode_kv_tokens": "per KV token that decodes read",
    "prefill_attention": "per prefill token and token of context before it",
    "spec_steps": "per drafted token of the longest draft",
}


@click.command()
@click.argument("replica", required=False)
@click.option("--explain", is_flag=True, help="Show the formula with its coefficients and what they mean.")
@click.option(
    "--write", type=click.Path(dir_okay=False, path_type=Path), help="Write a hardware profile for `slosctl simulate`."
)
@json_option
@click.pass_obj
def profile(target: Target, replica: str | None, explain: bool, write: Path | None, as_json: bool) -> None:
    """Show the fitted time model of REPLICA (default: of all), its error, and its margin."""
    with connect(target) as connection:
        known = connection.call(connection.admin.ListReplicas, admin_pb2.ListReplicasRequest()).replicas
    chosen = [item for item in known if replica in (None, item.replica)]
    if not chosen:
        names = ", ".join(item.replica for item in known) or "none"
        raise CliError(f"There is no replica {replica or 'yet'}; known: {names}.", Exit.NOT_FOUND)
    fitted = [item for item in chosen if item.time_model_json]
    if not fitted:
        raise CliError("No time model is fitted yet; a worker fits it when it starts.", Exit.UNREACHABLE)
    if write is not None:
        if len(fitted) > 1:
            raise CliError(f"Name one replica to write: {', '.join(item.replica for item in fitted)}.", Exit.USAGE)
        write.write_text(json.dumps(_hardware_profile(fitted[0]), indent=2) + "\n")
    if as_json:
        print_json({item.replica: _hardware_profile(item) for item in fitted})
        return
    models = [(item, TimeModel.from_json(item.time_model_json)) for item in fitted]
    columns = ["REPLICA", "HARDWARE", "R2", "P50 ERROR", "P99 ERROR", "HELD-OUT BATCHES", "MARGIN", "SOURCE"]
    print_table(columns, [_row(item, model) for item, model in models], empty="")
    if explain:
        for item, model in models:
            click.echo(f"\n{item.replica}: a step takes {model.margin:.3f} (margin) x {_largest(model)}")
            for number, line in enumerate(model.lines, start=1):
                click.echo(f"  line {number}:" if len(model.lines) > 1 else "  the sum of:")
                for term, coefficient in zip(LINE_TERMS, line, strict=True):
                    click.echo(f"    {1000 * coefficient:14.6g} ms {_MEANING[term]}")


def _hardware_profile(item: admin_pb2.Replica) -> dict[str, Any]:
    """What the simulator needs to stand for this replica (simulation.profiles)."""
    return {
        "time_model": json.loads(item.time_model_json),
        "engine": {
            "model": item.model,
            "hardware": item.hardware,
            "emulated": item.emulated,
            "block_size": item.block_size,
            "kv_blocks": item.kv_capacity_tokens // max(1, item.block_size),
            "max_batch_tokens": item.max_batch_tokens,
            "max_batch_requests": item.max_batch_requests,
            "max_model_len": item.max_model_len,
            "max_spec_tokens": item.max_spec_tokens,
        },
    }


def _largest(model: TimeModel) -> str:
    return "one line" if len(model.lines) == 1 else f"the largest of {len(model.lines)} lines"


def _row(item: admin_pb2.Replica, model: TimeModel) -> list[object]:
    quality = model.quality
    errors = (
        [f"{quality.r2:.3f}", f"{100 * quality.p50_relative_error:.1f} %", f"{100 * quality.p99_relative_error:.1f} %"]
        if quality
        else ["-", "-", "-"]
    )
    held_out = str(quality.held_out) if quality else "-"
    return [item.replica, item.hardware, *errors, held_out, f"{model.margin:.3f}", model.source]
