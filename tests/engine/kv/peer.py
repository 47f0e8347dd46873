"""One end of a KV exchange as a process of its own, told over a pipe what to do: for tests that kill and stop it.

Orders are {"do": "expect"|"offer"|"compute"|"abort"|"stats"|"content", ...}; each is answered by one message, and an
{"ended": ...} message comes whenever transfers end.
"""

from __future__ import annotations

import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from engine.kv.config import Identity, KvConfig, TransferKey
from engine.kv.endpoint import KvEndpoint

LAYERS, BLOCKS = 6, 64
SHAPE = (BLOCKS, 2, 64, 64)
CONFIG = {"message_bytes": 65536, "checksum": True, "heartbeat_s": 0.1, "lease_s": 2.0, "io_timeout_s": 1.5}


def contents(seed: int) -> list[torch.Tensor]:
    """Caches that both the process and its test can make."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator).half() for _ in range(LAYERS)]


def passed(device: str) -> torch.cuda.Event | None:
    """The point that the device's stream has reached; None for host memory."""
    if device == "cpu":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def main(seed: int, port: int, pipe: Connection, device: str = "cpu", backend: str = "auto") -> None:
    """Serve orders until the pipe closes."""
    torch.set_num_threads(1)
    caches = [cache.to(device) for cache in contents(seed)]
    config = KvConfig(port=port, backend=backend, **CONFIG)  # type: ignore[arg-type]
    endpoint = KvEndpoint(caches, BLOCKS, Identity(f"worker-{seed}", "model"), config)
    write_lock = threading.Lock()

    def write(message: dict[str, Any]) -> None:
        with write_lock:
            pipe.send(message)

    def report() -> None:
        while True:
            ended = endpoint.poll()
            failed = {**ended.send_failed, **ended.receive_failed}
            done = {key.transfer_id: "" for key in [*ended.sent, *ended.received]}
            done.update({key.transfer_id: reason for key, reason in failed.items()})
            if done:
                write({"ended": done})
            time.sleep(0.002)

    threading.Thread(target=report, daemon=True).start()
    write({"address": endpoint.address})
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            break
        key = TransferKey(order.get("id", ""), order.get("generation", 0))
        answer: dict[str, Any] = {"ok": True}
        if order["do"] == "expect":
            endpoint.expect(key, order["blocks"], order.get("first", 0))
        elif order["do"] == "offer":
            endpoint.offer(key, order["to"])
        elif order["do"] == "compute":
            endpoint.grow(key, order["blocks"], len(order["blocks"]))
            for layer in range(LAYERS):
                endpoint.computed(key, layer, len(order["blocks"]), passed(device))
                time.sleep(order.get("layer_s", 0.0))
        elif order["do"] == "abort":
            endpoint.abort_sending(key, "asked to")
            endpoint.abort_receiving(key, "asked to")
        elif order["do"] == "stats":
            stats = endpoint.stats()
            answer = {"outgoing": stats.outgoing, "incoming": stats.incoming, "received": stats.bytes_received}
        elif order["do"] == "content":
            blocks = order["blocks"]
            answer = {"sums": [float(cache[blocks].double().sum()) for cache in caches]}
        write(answer)
    endpoint.close()
