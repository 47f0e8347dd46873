"""Bytes per second of the KV exchange against the raw link, measured in turn in one run.

Two processes hold KV caches of the shape of SmolLM2-135M (30 layers, 3 KV heads of 64, float16, blocks of 128 tokens:
about 23 KB per token). "raw" is one send and receive of the same bytes, contiguous, over a process group made the same
way; "exchange" is offer, gather, send, scatter and the end told to both sides. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import torch
from rich.table import Table

from benchmarks import common
from engine.kv import link as links
from engine.kv.config import Identity, KvConfig, TransferKey
from engine.kv.endpoint import KvEndpoint

LAYERS, KV_HEADS, BLOCK_TOKENS, HEAD_DIM = 30, 3, 128, 64
BLOCKS = 128
TIMEOUT_S = 20.0


def _caches(device: torch.device) -> list[torch.Tensor]:
    shape = (BLOCKS, KV_HEADS, BLOCK_TOKENS, 2 * HEAD_DIM)
    return [torch.rand(shape, device=device).to(torch.float16) for _ in range(LAYERS)]


def _await(endpoint: KvEndpoint, key: TransferKey) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        ended = endpoint.poll()
        if key in ended.received or key in ended.sent:
            return
        if ended.receive_failed or ended.send_failed:
            raise RuntimeError(f"transfer failed: {ended}")
        time.sleep(100e-6)
    raise TimeoutError(f"transfer {key} did not end within {TIMEOUT_S} s")


def _consumer(pipe: Connection, backend: str, device_name: str, message_bytes: int) -> None:
    torch.set_num_threads(1)
    device = torch.device(device_name)
    config = KvConfig(backend=backend, message_bytes=message_bytes)
    endpoint = KvEndpoint(_caches(device), BLOCKS, Identity("consumer", "bench"), config)
    store = links.open_store("127.0.0.1", config.connect_timeout_s)
    pipe.send((endpoint.address, store.port))
    link = links.make_link(store, links.CONSUMER, links.resolve_backend(config, device), "127.0.0.1", config)
    while (order := pipe.recv()) is not None:
        kind, name, blocks = order
        if kind == "raw":
            buffer = torch.empty(blocks * LAYERS * endpoint.layout.block_bytes, dtype=torch.uint8, device=device)
            pipe.send("ready")
            link.receive(buffer).wait()
        else:
            key = TransferKey(name, 0)
            endpoint.expect(key, torch.randperm(BLOCKS)[:blocks].tolist(), 0)
            pipe.send("ready")
            _await(endpoint, key)
        pipe.send("done")
    endpoint.close()


def measure(tokens: list[int], rounds: int, backend: str, device_name: str, message_bytes: int) -> dict[str, Any]:
    """Run both processes and return the figures: seconds and bytes per second, medians of the rounds."""
    torch.set_num_threads(1)
    device = torch.device(device_name)
    config = KvConfig(backend=backend, message_bytes=message_bytes)
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_consumer, args=(theirs, backend, device_name, message_bytes), daemon=True)
    process.start()
    results = []
    try:
        if not pipe.poll(60):
            raise TimeoutError("the consumer process did not start within 60 s")
        address, port = pipe.recv()
        store = links.join_store("127.0.0.1", port, config.connect_timeout_s)
        link = links.make_link(store, links.PRODUCER, links.resolve_backend(config, device), "127.0.0.1", config)
        endpoint = KvEndpoint(_caches(device), BLOCKS, Identity("producer", "bench"), config)
        for count in tokens:
            blocks = -(-count // BLOCK_TOKENS)
            size = blocks * LAYERS * endpoint.layout.block_bytes
            raw_data = torch.zeros(size, dtype=torch.uint8, device=device)
            seconds: dict[str, list[float]] = {"raw": [], "exchange": []}
            for turn in range(rounds + 2):
                for kind in seconds:
                    key = TransferKey(f"{count}-{turn}", 0)
                    pipe.send((kind, key.transfer_id, blocks))
                    pipe.recv()
                    start = time.perf_counter()
                    if kind == "raw":
                        link.send(raw_data).wait()
                    else:
                        endpoint.offer(key, address)
                        endpoint.grow(key, torch.randperm(BLOCKS)[:blocks].tolist(), blocks)
                        for layer in range(LAYERS):
                            endpoint.computed(key, layer, blocks)
                    pipe.recv()
                    elapsed = time.perf_counter() - start
                    if kind == "exchange":
                        _await(endpoint, key)
                    if turn >= 2:
                        seconds[kind].append(elapsed)
            raw_s, exchange_s = statistics.median(seconds["raw"]), statistics.median(seconds["exchange"])
            results.append(
                {
                    "tokens": count,
                    "bytes": size,
                    "raw_s": raw_s,
                    "exchange_s": exchange_s,
                    "raw_bytes_per_s": size / raw_s,
                    "exchange_bytes_per_s": size / exchange_s,
                    "ratio": raw_s / exchange_s,
                }
            )
        pipe.send(None)
        endpoint.close()
        process.join(TIMEOUT_S)
    finally:
        if process.is_alive():
            process.kill()
    return {
        "backend": links.resolve_backend(config, device),
        "device": device_name,
        "message_bytes": message_bytes,
        "rows": results,
    }


def show(whole: common.Result) -> None:
    """Print the result for people."""
    columns = ("tokens", "MB", "raw, MB/s", "exchange, MB/s", "exchange against raw")
    table = Table(*columns, title="KV transfer", title_justify="left")
    for row in whole["result"]["rows"]:
        rates = (f"{row[side] / 1e6:.0f}" for side in ("raw_bytes_per_s", "exchange_bytes_per_s"))
        table.add_row(str(row["tokens"]), f"{row['bytes'] / 1e6:.1f}", *rates, f"{row['ratio']:.2f}")
    common.console().print(table)


def _measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    rounds = 3 if given.quick else given.rounds
    result = measure(given.tokens, rounds, given.backend, given.device, given.message_bytes)
    return {"rounds": rounds}, result


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backend", choices=("auto", "gloo", "nccl"), default="auto")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0 ...")
    parser.add_argument("--message-bytes", type=int, default=KvConfig().message_bytes)


if __name__ == "__main__":
    sys.exit(common.main("kv-transfer", __doc__, _measure, show, _add_arguments))
