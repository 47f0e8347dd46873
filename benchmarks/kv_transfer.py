"""Bytes per second of the KV exchange against the raw link, and how much of it hides behind compute, in one run.

"raw" is one send and receive of the same bytes, contiguous, over a process group (Gloo for caches in host memory);
"exchange" is gather, send, scatter and the end told to both sides, between idle engines, of a prompt that was offered
before, as engines do. They take turns; ratios are of medians. "Copies" is gather and scatter alone, with nothing beside
them, which the backend tcp does without.

"Hidden" is the part of a transfer that a prompt does not wait for when each layer's KV leaves while the next layer is
computed: the matrix products of the model's layers are computed in chunks of 256 tokens, alone, with the transfer
after them, and with the transfer beside them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks import common
from benchmarks.kv_pair import BLOCK_TOKENS, KvPair, kv_pair
from engine.kv.config import BACKENDS, KvConfig

_WARM_UP = 2


def _medians(ways: Mapping[str, Callable[[int], float]], blocks: int, rounds: int) -> dict[str, float]:
    """Median seconds of each way of moving so many blocks; the ways take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + _WARM_UP):
        for name, way in ways.items():
            taken_s = way(blocks)
            if turn >= _WARM_UP:
                seconds[name].append(taken_s)
    return {name: common.median(values) for name, values in seconds.items()}


def against_raw(pair: KvPair, tokens: int, rounds: int) -> dict[str, Any]:
    """Bytes per second of the exchange and of the raw link for a prompt of this length."""
    blocks = -(-tokens // BLOCK_TOKENS)
    found = _medians({"raw": pair.raw, "exchange": pair.exchange, "copies": pair.copies}, blocks, rounds)
    size = blocks * pair.block_bytes
    return {
        "tokens": tokens,
        "bytes": size,
        "raw_s": found["raw"],
        "exchange_s": found["exchange"],
        "copies_s": found["copies"],
        "raw_bytes_per_s": size / found["raw"],
        "exchange_bytes_per_s": size / found["exchange"],
        "ratio": found["raw"] / found["exchange"],
    }


def behind_compute(pair: KvPair, tokens: int, rounds: int) -> dict[str, Any]:
    """How long a prompt of this length waits for its transfer once it is computed, sent at its end or layer-wise."""
    blocks = -(-tokens // BLOCK_TOKENS)
    ways = {"compute": pair.compute, "after": pair.compute_then_send, "beside": pair.compute_and_send}
    found = _medians(ways, blocks, rounds)
    after_s, beside_s = found["after"] - found["compute"], found["beside"] - found["compute"]
    return {
        "tokens": tokens,
        "compute_s": found["compute"],
        "waits_at_end_s": after_s,
        "waits_layer_wise_s": beside_s,
        "hidden": 1.0 - beside_s / after_s if after_s > 0.0 else None,
    }


def measure(
    tokens: Sequence[int], rounds: int, compute_rounds: int, device_name: str, config: KvConfig
) -> dict[str, Any]:
    """Run both processes and return the figures, a row per length of prompt."""
    with kv_pair(device_name, config) as pair:
        return {
            "backend": pair.backend,
            "raw_backend": pair.raw_backend,
            "device": device_name,
            "message_bytes": config.message_bytes,
            "rows": [against_raw(pair, count, rounds) for count in tokens],
            "behind_compute": [behind_compute(pair, count, compute_rounds) for count in tokens[:1] if compute_rounds],
        }


def show(whole: common.Result) -> None:
    """Print the results for people."""
    for result in whole["result"]["backends"]:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    columns = (
        "tokens",
        "MB",
        f"raw {result['raw_backend']}, MB/s",
        "exchange, MB/s",
        "exchange against raw",
        "copies, ms",
    )
    table = Table(*columns, title=f"KV transfer over {result['backend']}", title_justify="left")
    for row in result["rows"]:
        rates = (f"{row[side] / 1e6:.0f}" for side in ("raw_bytes_per_s", "exchange_bytes_per_s"))
        share, copies = f"{row['ratio']:.2f}", f"{row['copies_s'] * 1e3:.1f}"
        table.add_row(str(row["tokens"]), f"{row['bytes'] / 1e6:.1f}", *rates, share, copies)
    common.console().print(table)
    for row in result["behind_compute"]:
        common.console().print(
            f"{row['tokens']} tokens, computed in {row['compute_s'] * 1e3:.0f} ms: sent at the end they wait "
            f"{row['waits_at_end_s'] * 1e3:.1f} ms, layer by layer {row['waits_layer_wise_s'] * 1e3:.1f} ms; "
            + ("too little to tell" if row["hidden"] is None else f"{max(0.0, row['hidden']):.0%} hidden")
        )


def _measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    rounds, compute_rounds = given.rounds, given.compute_rounds
    if given.quick:
        rounds, compute_rounds = min(rounds, 3), min(compute_rounds, 1)
    backends = given.backend or (["gloo", "tcp"] if given.device == "cpu" else ["auto"])
    configs = [KvConfig(backend=backend, message_bytes=given.message_bytes) for backend in backends]
    results = [measure(given.tokens, rounds, compute_rounds, given.device, config) for config in configs]
    return {"rounds": rounds, "compute_rounds": compute_rounds}, {"backends": results}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096], help="lengths of prompts")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compute-rounds", type=int, default=5, help="for the time hidden behind compute; 0: none")
    parser.add_argument("--backend", choices=BACKENDS, nargs="+", help="default: gloo and tcp on cpu, else auto")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0 ...")
    parser.add_argument("--message-bytes", type=int, default=KvConfig().message_bytes)


if __name__ == "__main__":
    sys.exit(common.main("kv-transfer", __doc__, _measure, show, _add_arguments))
