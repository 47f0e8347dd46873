"""Bytes per second of the KV exchange against the raw link, measured in turn in one run.

    python -m benchmarks.kv_transfer [--json] [--tokens 1024 ...] [--rounds 15] [--backend auto|gloo|nccl]

Two processes hold KV caches of the shape of SmolLM2-135M (30 layers, 3 KV heads of 64, float16, blocks of 128 tokens:
about 23 KB per token). "raw" is one send and receive of the same bytes, contiguous, over a process group made the same
way; "exchange" is offer, gather, send, scatter and the end told to both sides. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection

import torch

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


def measure(tokens: list[int], rounds: int, backend: str, device_name: str, message_bytes: int) -> dict[str, object]:
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
        "benchmark": "kv-transfer",
        "backend": links.resolve_backend(config, device),
        "device": device_name,
        "message_bytes": message_bytes,
        "rounds": rounds,
        "results": results,
    }


def main(arguments: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_transfer", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backend", choices=("auto", "gloo", "nccl"), default="auto")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0 ...")
    parser.add_argument("--message-bytes", type=int, default=KvConfig().message_bytes)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args(arguments)
    result = measure(options.tokens, options.rounds, options.backend, options.device, options.message_bytes)
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"{'tokens':>8} {'MB':>7} {'raw MB/s':>9} {'exchange MB/s':>14} {'ratio':>6}")
    for row in result["results"]:  # type: ignore[attr-defined]
        print(
            f"{row['tokens']:>8} {row['bytes'] / 1e6:>7.1f} {row['raw_bytes_per_s'] / 1e6:>9.0f} "
            f"{row['exchange_bytes_per_s'] / 1e6:>14.0f} {row['ratio']:>6.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
