"""What the cluster costs: the same burst straight through vLLM's AsyncLLM, and through controller and worker.

SLOs are so loose that none binds, so both sides are limited by the engine. Both engines are up all the time, bound to
the same cores, and take turns; every burst has prompts of its own, the same on both sides, so that no prefix cache
helps. Added TTFT is the difference over pairs of single requests on the idle machine.

vLLM's processes go on polling for a second after their last step, on the cores that the other side is bound to, and an
engine's first step after a pause is slow. So before each turn the other side is left to fall asleep, and the side whose
turn it is answers one request that does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from rich.table import Table

from benchmarks import common
from benchmarks.sweep import policy_arguments
from cli.cluster.plan import cores_for
from engine.vllm.config import VllmConfig
from engine.vllm.direct import DirectVllm
from loadtest.own_cluster import model_folder, own_cluster
from protos.slos.v1 import client_pb2, client_pb2_grpc, common_pb2

_LOOSE_MS = 3_600_000.0
_FIRST_TOKEN_ID, _LAST_TOKEN_ID = 1_000, 40_000
"""Ids that are ordinary words in the vocabulary of the model."""
_CALL_TIMEOUT_S = 300.0
_FALL_ASLEEP_S = 1.2
"""vLLM's shared-memory readers poll for 1 s after they last read something (SpinCondition of shm_broadcast)."""

Generate = Callable[[str, Sequence[int], int], AsyncIterator[int]]
"""(request id, prompt, output tokens) -> counts of new tokens as they come."""


@dataclass(frozen=True, slots=True)
class Request:
    """Lengths are tokens."""

    request_id: str
    prompt: tuple[int, ...]
    output_tokens: int


def burst(count: int, seed: int) -> list[Request]:
    """Prompts of 32-256 tokens, outputs of 32-96, the same for the same seed."""
    rng = random.Random(seed)

    def one(index: int) -> Request:
        prompt = tuple(rng.randint(_FIRST_TOKEN_ID, _LAST_TOKEN_ID) for _ in range(rng.randint(32, 256)))
        return Request(f"burst-{seed}-{index}", prompt, rng.randint(32, 96))

    return [one(index) for index in range(count)]


def single(index: int) -> Request:
    """One request of the TTFT pairs."""
    rng = random.Random(1_000_000 + index)
    return Request(f"single-{index}", tuple(rng.randint(_FIRST_TOKEN_ID, _LAST_TOKEN_ID) for _ in range(64)), 4)


async def throughput(generate: Generate, requests: Sequence[Request]) -> float:
    """Output tokens per second of a burst, all sent at once; RuntimeError when a token is missing."""

    async def play(request: Request) -> int:
        return sum([count async for count in generate(request.request_id, request.prompt, request.output_tokens)])

    begin = time.monotonic()
    counts = await asyncio.gather(*(play(request) for request in requests))
    wall_s = time.monotonic() - begin
    wanted = [request.output_tokens for request in requests]
    if list(counts) != wanted:
        raise RuntimeError(f"a burst gave {sum(counts)} output tokens instead of {sum(wanted)}")
    return sum(counts) / wall_s


async def first_token_s(generate: Generate, request: Request) -> float:
    """Time to the first token of one request; waits for its end."""
    begin = time.monotonic()
    first = 0.0
    async for count in generate(request.request_id, request.prompt, request.output_tokens):
        if count and not first:
            first = time.monotonic() - begin
    return first


def through_cluster(stub: client_pb2_grpc.ClientStub, model: str) -> Generate:
    """Generate over the cluster's gRPC API."""

    async def generate(request_id: str, prompt: Sequence[int], output_tokens: int) -> AsyncIterator[int]:
        call = client_pb2.GenerateRequest(
            request_id=request_id,
            model=model,
            prompt_tokens=client_pb2.TokenIds(ids=prompt),
            sampling=common_pb2.Sampling(temperature=0.0, max_tokens=output_tokens, ignore_eos=True),
            slo=common_pb2.SloSpec(ttft_ms=_LOOSE_MS, tpot_ms=_LOOSE_MS),
        )
        async for message in stub.Generate(call, timeout=_CALL_TIMEOUT_S):
            if message.finish_reason == common_pb2.FINISH_REASON_ERROR:
                raise RuntimeError(f"the cluster failed {request_id}: {message.error}")
            yield len(message.token_ids)

    return generate


async def compare(
    direct: Generate,
    cluster: Generate,
    count: int,
    pairs: int,
    singles: int,
    fall_asleep_s: float = _FALL_ASLEEP_S,
) -> dict[str, Any]:
    """Alternate between both sides, the one that goes first changing from pair to pair."""
    sides = {"direct": direct, "cluster": cluster}
    warm_ups = itertools.count()

    async def turn(name: str) -> Generate:
        await asyncio.sleep(fall_asleep_s)
        await first_token_s(sides[name], single(-1 - next(warm_ups)))
        return sides[name]

    for generate in sides.values():
        await throughput(generate, burst(4, seed=-1))
    rates: dict[str, list[float]] = {"direct": [], "cluster": []}
    for pair in range(pairs):
        for name in _order(pair):
            rates[name].append(await throughput(await turn(name), burst(count, seed=pair)))
        common.say(
            f"pair {pair + 1}/{pairs}: direct {rates['direct'][-1]:.1f}, cluster {rates['cluster'][-1]:.1f} tok/s"
        )
    ratios = [c / d for c, d in zip(rates["cluster"], rates["direct"], strict=True)]
    ttft: dict[str, list[float]] = {"direct": [], "cluster": []}
    for index in range(singles):
        for name in _order(index):
            ttft[name].append(await first_token_s(await turn(name), single(index)))
    added = [(c - d) * 1e3 for c, d in zip(ttft["cluster"], ttft["direct"], strict=True)]
    return {
        "throughput_ratio_median": common.median(ratios),
        "throughput_ratios": [round(r, 4) for r in ratios],
        "direct_tokens_per_s": [round(r, 2) for r in rates["direct"]],
        "cluster_tokens_per_s": [round(r, 2) for r in rates["cluster"]],
        "added_ttft_ms": common.quantiles(added),
        "direct_ttft_ms": common.quantiles([t * 1e3 for t in ttft["direct"]]),
        "cluster_ttft_ms": common.quantiles([t * 1e3 for t in ttft["cluster"]]),
    }


def _order(number: int) -> tuple[str, str]:
    return ("direct", "cluster") if number % 2 == 0 else ("cluster", "direct")


async def both(grpc_address: str, config: VllmConfig, given: argparse.Namespace) -> dict[str, Any]:
    """Compare the cluster at this address with an engine of our own."""
    direct = DirectVllm(config)
    await direct.start()
    try:
        async with grpc.aio.insecure_channel(grpc_address) as channel:
            stub = client_pb2_grpc.ClientStub(channel)
            listed = await stub.ListModels(client_pb2.ListModelsRequest(), timeout=30.0)
            cluster = through_cluster(stub, listed.models[0].name)
            return await compare(direct.generate, cluster, given.requests, given.pairs, given.singles)
    finally:
        await direct.close()


def measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bring both up, alternate, take both down."""
    if given.quick:
        given.requests, given.pairs, given.singles = min(given.requests, 8), min(given.pairs, 3), min(given.singles, 10)
    model = model_folder()
    usable = os.sched_getaffinity(0)
    cores = cores_for(1, sorted(usable))[0]
    config = VllmConfig(
        model_dir=model,
        omp_threads_bind=",".join(map(str, cores)),
        other_cores=",".join(map(str, sorted(usable - set(cores)))),
        policy="stock",
    )
    profile = ("--worker-option=--profile-quick",) if given.quick else ()
    with (
        tempfile.TemporaryDirectory(prefix="slos-overhead-") as folder,
        own_cluster(Path(folder), [*policy_arguments(given.policy), *profile], model) as cluster,
    ):
        # The engine of this process needs the cores that clients of the cluster stay off.
        os.sched_setaffinity(0, usable)
        result = asyncio.run(both(cluster.grpc_address, config, given))
    settings = {
        "policy": given.policy,
        "engine_cores": cores,
        "requests_per_burst": given.requests,
        "pairs": given.pairs,
        "single_pairs": given.singles,
    }
    return settings, result


def show(whole: common.Result) -> None:
    """Print the result for people."""
    result = whole["result"]
    table = Table("", "direct", "cluster", "cluster against direct", title="Overhead", title_justify="left")
    rates = [common.median(result[f"{side}_tokens_per_s"]) for side in ("direct", "cluster")]
    table.add_row(
        "output tokens/s, median", *(f"{rate:.1f}" for rate in rates), f"x {result['throughput_ratio_median']:.3f}"
    )
    table.add_row(
        "TTFT p50, ms, idle",
        f"{result['direct_ttft_ms']['p50']:.1f}",
        f"{result['cluster_ttft_ms']['p50']:.1f}",
        f"+ {result['added_ttft_ms']['p50']:.1f}",
    )
    common.console().print(table)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=32, help="requests per burst")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of bursts")
    parser.add_argument("--singles", type=int, default=100, help="pairs of single requests")
    parser.add_argument("--policy", default="slos")


if __name__ == "__main__":
    sys.exit(common.main("overhead", __doc__, measure, show, _add_arguments))
