"""Two processes with KV caches and an exchange between them: what bench kv-transfer measures.

Their caches have the shape of SmolLM2-135M's: 30 layers, 3 KV heads of 64, float16, blocks of 128 tokens, about 23 KB
per token. A plain process group joins them too, for the raw link.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch

from engine.kv import link as links
from engine.kv.buffers import message_blocks, message_buffers
from engine.kv.config import Identity, KvConfig, TransferKey
from engine.kv.endpoint import KvEndpoint
from engine.kv.layout import Piece

LAYERS, KV_HEADS, BLOCK_TOKENS, HEAD_DIM = 30, 3, 128, 64
BLOCKS = 128
CHUNK_BLOCKS = 2
"""Blocks per chunk of a chunked prefill: 256 tokens."""
HIDDEN, INTERMEDIATE = 576, 1536
OFFERED_BEFORE_S = 0.02
"""An engine offers a prompt before it computes it; by its end the consumer has long been ready."""
_START_TIMEOUT_S = 60.0
TIMEOUT_S = 20.0


class Layer:
    """The matrix products of one layer of the model, for one chunk of a prompt: what a transfer can hide behind."""

    def __init__(self, device: torch.device) -> None:
        """Draw weights."""
        shapes = ((HIDDEN, 5 * HIDDEN // 3), (HIDDEN, HIDDEN), (HIDDEN, 2 * INTERMEDIATE), (INTERMEDIATE, HIDDEN))
        self._weights = [torch.randn(shape, device=device) for shape in shapes]
        self._input = torch.randn((CHUNK_BLOCKS * BLOCK_TOKENS, INTERMEDIATE), device=device)

    def compute(self) -> None:
        """Multiply."""
        for weight in self._weights:
            torch.mm(self._input[:, : weight.shape[0]], weight)


class KvPair:
    """The producer's process, this one, with the consumer's at the other end of a pipe. Results are in seconds."""

    def __init__(self, pipe: Connection, device: torch.device, config: KvConfig) -> None:
        """Wait for the consumer and connect; TimeoutError when it does not start."""
        if not pipe.poll(_START_TIMEOUT_S):
            raise TimeoutError(f"the consumer process did not start within {_START_TIMEOUT_S:.0f} s")
        self._pipe = pipe
        self._device = device
        self._address, port = pipe.recv()
        self._endpoint = KvEndpoint(_caches(device), BLOCKS, Identity("producer", "bench"), config)
        self.backend = links.resolve_backend(config, self._endpoint.layout)
        self.raw_backend = _raw_backend(self.backend)
        store = links.join_store("127.0.0.1", port, config.connect_timeout_s)
        self._link = links.make_link(store, links.PRODUCER, self.raw_backend, "127.0.0.1", config)
        self._raw = _raw_buffer(self._endpoint, device)
        self._message = message_buffers(self._endpoint.layout, config, self.raw_backend, 1)[0]
        self._layer = Layer(device)
        self._names = itertools.count()
        self.block_bytes = LAYERS * self._endpoint.layout.block_bytes

    def raw(self, blocks: int) -> float:
        """One send and receive of the bytes of so many blocks, contiguous."""
        self._order("raw", "", blocks)
        begin = time.perf_counter()
        self._link.send(self._raw[: blocks * LAYERS * self._endpoint.layout.block_elements]).wait()
        self._done()
        return time.perf_counter() - begin

    def exchange(self, blocks: int) -> float:
        """Gather, send, scatter, and the end told to both sides, of a prompt that was offered before."""
        key = self._expected(blocks)
        self._offer(key)
        time.sleep(OFFERED_BEFORE_S)
        begin = time.perf_counter()
        self._hand_over(key, blocks)
        self._done()
        elapsed_s = time.perf_counter() - begin
        _await(self._endpoint, key)
        return elapsed_s

    def copies(self, blocks: int) -> float:
        """Gather and scatter of so many blocks alone, message by message, in this process."""
        layout = self._endpoint.layout
        source, target = (torch.randperm(BLOCKS)[:blocks].tolist() for _ in range(2))
        at_once = max(1, message_blocks(layout, self._endpoint.config) // blocks)
        begin = time.perf_counter()
        for layer in range(0, LAYERS, at_once):
            piece = Piece(layer, min(layer + at_once, LAYERS), 0, blocks)
            layout.gather(piece, source, self._message)
            layout.scatter(piece, target, self._message)
        self._synchronize()
        return time.perf_counter() - begin

    def compute(self, blocks: int) -> float:
        """Compute a prompt, chunk by chunk and layer by layer, and send nothing."""
        begin = time.perf_counter()
        for _ in range(0, blocks, CHUNK_BLOCKS):
            for _ in range(LAYERS):
                self._layer.compute()
        self._synchronize()
        return time.perf_counter() - begin

    def compute_then_send(self, blocks: int) -> float:
        """Compute a prompt, and hand it over when the whole of it is done."""
        key = self._expected(blocks)
        begin = time.perf_counter()
        self._offer(key)
        self.compute(blocks)
        self._hand_over(key, blocks)
        self._done()
        elapsed_s = time.perf_counter() - begin
        _await(self._endpoint, key)
        return elapsed_s

    def compute_and_send(self, blocks: int) -> float:
        """Compute a prompt, and hand each layer of each chunk over as soon as it is done."""
        key = self._expected(blocks)
        begin = time.perf_counter()
        self._offer(key)
        ids = torch.randperm(BLOCKS)[:blocks].tolist()
        for first in range(0, blocks, CHUNK_BLOCKS):
            ready = min(blocks, first + CHUNK_BLOCKS)
            self._endpoint.grow(key, ids, blocks if ready == blocks else None)
            for layer in range(LAYERS):
                self._layer.compute()
                self._endpoint.computed(key, layer, ready, self._passed())
        self._done()
        elapsed_s = time.perf_counter() - begin
        _await(self._endpoint, key)
        return elapsed_s

    def close(self) -> None:
        """Let the consumer end, and end this side."""
        self._pipe.send(None)
        self._endpoint.close()

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _expected(self, blocks: int) -> TransferKey:
        key = TransferKey(str(next(self._names)), 0)
        self._order("exchange", key.transfer_id, blocks)
        return key

    def _offer(self, key: TransferKey) -> None:
        self._endpoint.offer(key, self._address)

    def _hand_over(self, key: TransferKey, blocks: int) -> None:
        self._endpoint.grow(key, torch.randperm(BLOCKS)[:blocks].tolist(), blocks)
        for layer in range(LAYERS):
            self._endpoint.computed(key, layer, blocks, self._passed())

    def _passed(self) -> torch.cuda.Event | None:
        if self._device.type == "cpu":
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _order(self, kind: str, name: str, blocks: int) -> None:
        self._pipe.send((kind, name, blocks))
        self._answer()

    def _done(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if not self._pipe.poll(TIMEOUT_S):
            raise TimeoutError(f"the consumer process did not answer within {TIMEOUT_S:.0f} s")
        self._pipe.recv()


@contextmanager
def kv_pair(device_name: str, config: KvConfig) -> Iterator[KvPair]:
    """Start both processes and end them."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_consumer, args=(theirs, device_name, config), daemon=True)
    process.start()
    theirs.close()
    try:
        pair = KvPair(pipe, torch.device(device_name), config)
        yield pair
        pair.close()
        process.join(TIMEOUT_S)
    finally:
        if process.is_alive():
            process.kill()


def _caches(device: torch.device) -> list[torch.Tensor]:
    shape = (BLOCKS, KV_HEADS, BLOCK_TOKENS, 2 * HEAD_DIM)
    return [torch.rand(shape, device=device).to(torch.float16) for _ in range(LAYERS)]


def _raw_buffer(endpoint: KvEndpoint, device: torch.device) -> torch.Tensor:
    """Memory for the raw link that has been written to, as the caches have: neither side waits for pages."""
    size = BLOCKS * LAYERS * endpoint.layout.block_elements
    return torch.randint(1 << 30, (size,), dtype=endpoint.layout.dtype, device=device)


def _raw_backend(backend: str) -> str:
    """The process group that an exchange is compared with; for what is none itself, that of host memory."""
    return "gloo" if backend == "tcp" else backend


def _await(endpoint: KvEndpoint, key: TransferKey) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while (left_s := deadline - time.monotonic()) > 0:
        ended = endpoint.poll(left_s)
        if key in ended.received or key in ended.sent:
            return
        if ended.receive_failed or ended.send_failed:
            raise RuntimeError(f"transfer failed: {ended}")
    raise TimeoutError(f"transfer {key} did not end within {TIMEOUT_S} s")


def _consumer(pipe: Connection, device_name: str, config: KvConfig) -> None:
    torch.set_num_threads(1)
    device = torch.device(device_name)
    endpoint = KvEndpoint(_caches(device), BLOCKS, Identity("consumer", "bench"), config)
    raw_buffer = _raw_buffer(endpoint, device)
    store = links.open_store("127.0.0.1", config.connect_timeout_s)
    pipe.send((endpoint.address, store.port))
    backend = _raw_backend(links.resolve_backend(config, endpoint.layout))
    link = links.make_link(store, links.CONSUMER, backend, "127.0.0.1", config)
    while (order := pipe.recv()) is not None:
        kind, name, blocks = order
        if kind == "raw":
            pipe.send("ready")
            link.receive(raw_buffer[: blocks * LAYERS * endpoint.layout.block_elements]).wait()
        else:
            key = TransferKey(name, 0)
            endpoint.expect(key, torch.randperm(BLOCKS)[:blocks].tolist(), 0)
            pipe.send("ready")
            _await(endpoint, key)
        pipe.send("done")
    endpoint.close()
