"""One prefill and one decode worker against two co-located replicas, on the real model: added TTFT, and a mixed burst.

Both have the same cores, one engine on each. First single requests on the idle clusters, the same prompts on both: what
the way of the KV adds to the first token. Then the same mixed burst at the same rates, with the same seeds, planned by
the same policy. Rates lie around the estimated knee of two replicas.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from typing import Any

import grpc
from rich.table import Table

from benchmarks import common, slo, sweep
from benchmarks.overhead import Request, first_token_s, through_cluster
from loadtest.own_cluster import OwnCluster
from protos.slos.v1 import admin_pb2, admin_pb2_grpc, client_pb2, client_pb2_grpc

CO_LOCATED, DISAGGREGATED = "co-located", "disaggregated"
_ENGINES = 2
_FIRST_TOKEN_ID, _LAST_TOKEN_ID = 1_000, 40_000


def prompt(tokens: int, index: int) -> Request:
    """One request of so many tokens, the same for the same index; no two share a prefix."""
    rng = random.Random(f"{tokens} {index}")
    ids = tuple(rng.randint(_FIRST_TOKEN_ID, _LAST_TOKEN_ID) for _ in range(tokens))
    return Request(f"single-{tokens}-{index}", ids, 4)


async def singles(cluster: OwnCluster, lengths: Sequence[int], count: int) -> dict[str, Any]:
    """TTFT of requests one after the other, seconds by length of prompt, and how many of them were handed over."""
    found: dict[str, Any] = {}
    async with grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        stub, admin = client_pb2_grpc.ClientStub(channel), admin_pb2_grpc.AdminStub(channel)
        listed = await stub.ListModels(client_pb2.ListModelsRequest(), timeout=30.0)
        generate = through_cluster(stub, listed.models[0].name)
        for warm_up in range(4):  # every engine, and the way between them
            await first_token_s(generate, prompt(lengths[0], -1 - warm_up))
        for tokens in lengths:
            before = await admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=30.0)
            ttft_s = [await first_token_s(generate, prompt(tokens, index)) for index in range(count)]
            after = await admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=30.0)
            found[str(tokens)] = {"ttft_s": ttft_s, "handovers": after.kv_handovers - before.kv_handovers}
    return found


def added(alone: dict[str, dict[str, Any]], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """A row per length of prompt: TTFT on both, and the differences of the same prompts, milliseconds."""
    rows = []
    for tokens in lengths:
        together, apart = (alone[side][str(tokens)] for side in (CO_LOCATED, DISAGGREGATED))
        pairs = list(zip(together["ttft_s"], apart["ttft_s"], strict=True))
        rows.append(
            {
                "tokens": tokens,
                "requests": len(pairs),
                "handovers": apart["handovers"],
                "co_located_ttft_ms": common.quantiles([1e3 * a for a, _ in pairs]),
                "disaggregated_ttft_ms": common.quantiles([1e3 * b for _, b in pairs]),
                "added_ttft_ms": common.quantiles([1e3 * (b - a) for a, b in pairs]),
            }
        )
    return rows


def measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bring one up after the other; on each the single requests, then every rate."""
    count = min(given.singles, 3) if given.quick else given.singles
    common_options = ("--engine", given.engine, *sweep.policy_arguments(given.policy))
    topologies = {
        CO_LOCATED: (*common_options, "--replicas", str(_ENGINES)),
        DISAGGREGATED: (*common_options, "--topology", "disaggregated", "--prefill", "1", "--decode", "1"),
    }
    alone: dict[str, dict[str, Any]] = {}

    def first(name: str, cluster: OwnCluster) -> None:
        common.say(f"{name}: single requests")
        alone[name] = asyncio.run(singles(cluster, given.prompts, count))

    swept = sweep.run(topologies, slo.workload(given), given.rates, given.quick, _ENGINES, first)
    settings = {**slo.settings(given), "policy": given.policy, "single_requests": count}
    return settings, {"alone": added(alone, given.prompts), **swept}


def show(whole: common.Result) -> None:
    """Print the added TTFT, then one row per topology and rate."""
    table = Table(
        *("prompt, tokens", "co-located TTFT p50, ms", "1P1D, ms", "added p50, ms", "handed over"),
        title="Single requests",
        title_justify="left",
    )
    for row in whole["result"]["alone"]:
        table.add_row(
            str(row["tokens"]),
            f"{row['co_located_ttft_ms']['p50']:.0f}",
            f"{row['disaggregated_ttft_ms']['p50']:.0f}",
            f"{row['added_ttft_ms']['p50']:+.0f}",
            f"{row['handovers']} of {row['requests']}",
        )
    common.console().print(table)
    slo.show(whole)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of bench slo, and what is compared."""
    slo.add_arguments(parser)
    parser.add_argument("--policy", default="slos")
    parser.add_argument("--singles", type=int, default=20, help="single requests per length of prompt")
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512, 1024], help="lengths, tokens")


if __name__ == "__main__":
    sys.exit(common.main("disaggregated", __doc__, measure, show, add_arguments))
