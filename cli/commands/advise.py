"""slosctl advise: how many workers should prefill and how many decode."""

from __future__ import annotations

import statistics
from dataclasses import asdict

import click

from cli.errors import CliError, Exit
from cli.output import json_option, print_json
from cli.rpc import Target, connect
from protos.slos.v1 import admin_pb2
from scheduling.split import SeenRequest, SplitAdvice
from scheduling.split import advise as split
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits

MOST_REQUESTS = 10_000


@click.command()
@click.option("--minutes", default=5.0, type=click.FloatRange(min=0.05), show_default=True, help="Load to judge by.")
@click.option(
    "--workers", type=click.IntRange(min=2), help="Size of the fleet; by default the replicas that are ready."
)
@click.option("--tpot-ms", type=click.FloatRange(min=0.1), help="By default the median of what the requests asked for.")
@json_option
@click.pass_obj
def advise(target: Target, minutes: float, workers: int | None, tpot_ms: float | None, as_json: bool) -> None:
    """Say which prefill:decode ratio the last minutes of load would have wanted, with the numbers."""
    with connect(target) as connection:
        known = connection.call(connection.admin.ListReplicas, admin_pb2.ListReplicasRequest()).replicas
        listed = connection.call(
            connection.admin.ListRequests, admin_pb2.ListRequestsRequest(limit=MOST_REQUESTS)
        ).requests
    ready = [replica for replica in known if replica.state == "ready" and replica.time_model_json]
    seen = [request for request in listed if request.age_s <= minutes * 60]
    if not ready:
        raise CliError("No replica with a time model is ready; see `slosctl replicas ls`.", Exit.REFUSED)
    if not seen:
        raise CliError(f"No request came in the last {minutes:g} minutes: there is no load to judge by.", Exit.REFUSED)
    replica = ready[0]
    limits = EngineLimits(
        max_batch_tokens=replica.max_batch_tokens,
        max_batch_requests=replica.max_batch_requests,
        block_size=replica.block_size,
        total_blocks=replica.kv_capacity_tokens // replica.block_size,
        max_model_len=replica.max_model_len,
        max_spec_tokens=replica.max_spec_tokens,
    )
    asked = [request.promise.tpot_ms for request in seen if request.promise.tpot_ms > 0]
    advice = split(
        [SeenRequest(max(1, request.prompt_tokens), request.output_tokens) for request in seen],
        max(request.age_s for request in seen),
        (tpot_ms or (statistics.median(asked) if asked else 100.0)) / 1000,
        workers or len(ready),
        TimeModel.from_json(replica.time_model_json),
        limits,
    )
    if as_json:
        print_json({**asdict(advice), "ratio": advice.ratio, "busiest": advice.busiest, "judged_by": replica.replica})
        return
    for line in lines_of(advice, replica.replica):
        click.echo(line)


def lines_of(advice: SplitAdvice, replica: str) -> list[str]:
    """Return the advice for people."""
    lines = [
        f"load      {advice.requests} requests in {advice.seconds:.0f} s: {advice.prompt_tokens_per_s:.0f} prompt and "
        f"{advice.output_tokens_per_s:.0f} output tokens/s",
        f"prefill   keeps {advice.prefill_work:.2f} workers busy in full batches (time model of {replica})",
        f"decode    keeps {advice.decode_work:.2f} workers busy, {advice.decode_batch} requests together within "
        f"{advice.tpot_s * 1000:.0f} ms per token",
        f"ratio     {advice.ratio:.2f} prefill workers per decode worker",
    ]
    if advice.prefill:
        lines.append(f"split     {advice.prefill} prefill : {advice.decode} decode")
    else:
        lines.append("split     none: two workers are needed for one; see --workers")
    lines.append(
        f"busiest   {advice.busiest:.0%} of its time" + (": more than they carry" if advice.busiest > 1 else "")
    )
    return lines
