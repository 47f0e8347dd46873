"""KV hand-over of an emulated engine, over the real transport (engine.kv).

There is a small cache whose blocks hold a number that follows from the tokens up to the block's end. So the bytes
that travel prove what they are: a block that was sent after its reuse, or loaded into the wrong place, is noticed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch

from engine.emulated.config import EmulatedConfig
from engine.emulated.kv import block_hashes
from engine.emulated.live import Live
from engine.kv.config import Identity, KvConfig, KvExchangeError, TransferKey
from engine.kv.endpoint import KvEndpoint

log = logging.getLogger(__name__)

_LAYERS = 2


class WrongKvError(Exception):
    """KV that has arrived is not that of its request: the exchange is broken."""


@dataclass(slots=True)
class Settled:
    """What ended since the last look: blocks left by a request, requests whose KV is here, and ones whose is not."""

    free: list[list[int]] = field(default_factory=list)
    arrived: list[Live] = field(default_factory=list)
    failed: list[Live] = field(default_factory=list)


class KvExchange:
    """The endpoint of one emulated engine and the transfers of its requests."""

    def __init__(self, config: EmulatedConfig, exchange: KvConfig) -> None:
        """Listen at once; KvExchangeError when the address is taken."""
        words = config.kv_block_bytes // (8 * _LAYERS)
        self._caches = [torch.zeros((config.kv_blocks, words), dtype=torch.int64) for _ in range(_LAYERS)]
        self._block_size = config.block_size
        self._endpoint = KvEndpoint(self._caches, config.kv_blocks, Identity(config.worker_id, config.model), exchange)
        self._sending: dict[TransferKey, Live] = {}
        self._whole: set[TransferKey] = set()
        self._moving: dict[TransferKey, list[int]] = {}
        self._receiving: dict[TransferKey, tuple[Live, int]] = {}

    @property
    def address(self) -> str:
        """host:port at which peers reach this engine."""
        return self._endpoint.address

    @property
    def layout(self) -> str:
        """Form of the KV, which peers must share; see engine.protocol.EngineInfo."""
        block_bytes = self._endpoint.layout.block_bytes * _LAYERS
        return f"emulated, blocks of {self._block_size} tokens and {block_bytes} bytes"

    @property
    def busy(self) -> bool:
        """Something may end without a step of this engine."""
        return bool(self._moving or self._receiving)

    def close(self) -> None:
        """End every transfer."""
        self._endpoint.close()

    def write(self, live: Live, first_block: int, tokens: int) -> None:
        """Write the blocks of a request from first_block on, as far as its first `tokens` tokens reach."""
        for index, value in enumerate(_contents(live, tokens, self._block_size)):
            if index >= first_block:
                for cache in self._caches:
                    cache[live.blocks[index]] = value

    # ---- producer

    def offer(self, live: Live) -> None:
        """Announce the KV of a request that will be computed here; KvExchangeError when it is offered already."""
        transfer = live.request.kv_transfer
        assert transfer is not None
        key = _key(live)
        self._endpoint.offer(key, transfer.peer_address, transfer.lease_s)
        self._sending[key] = live

    def computed(self, live: Live, tokens: int) -> None:
        """Let the blocks leave that the first `tokens` tokens of a request fill, all of them with its last one."""
        key = _key(live)
        if self._sending.get(key) is not live or key in self._whole:
            return
        whole = tokens >= len(live.tokens)
        ready = -(-tokens // self._block_size) if whole else tokens // self._block_size
        if whole:
            self._whole.add(key)
        self._endpoint.grow(key, list(live.blocks), ready if whole else None)
        for layer in range(_LAYERS):
            self._endpoint.computed(key, layer, ready)

    def interrupt(self, live: Live, reason: str) -> None:
        """Stop sending, because the blocks are needed or the request has ended: they may be reused at once."""
        key = _key(live)
        if self._sending.pop(key, None) is not None:
            self._whole.discard(key)
            self._endpoint.abort_sending(key, reason)

    def let_leave(self, live: Live) -> bool:
        """Take over the blocks of a request that has ended while they are leaving; False when nothing is."""
        key = _key(live)
        if key not in self._whole:
            self.interrupt(live, "the request ended before its prompt was computed")
            return False
        del self._sending[key]
        self._whole.discard(key)
        self._moving[key] = live.blocks
        return True

    # ---- consumer

    def expect(self, live: Live, first_block: int) -> bool:
        """Wait for the KV of a request from first_block on; False when it cannot come any more."""
        transfer = live.request.kv_transfer
        assert transfer is not None
        key, blocks = _key(live), -(-len(live.tokens) // self._block_size)
        try:
            self._endpoint.expect(key, live.blocks[:blocks], first_block, transfer.lease_s, transfer.peer)
        except KvExchangeError as error:
            log.warning("KV of %s is not awaited: %s", live.request_id, error)
            return False
        self._receiving[key] = (live, first_block)
        return True

    def refuse(self, live: Live, reason: str) -> bool:
        """Want nothing of a transfer, or nothing more; True when its blocks stay taken until poll gives them back."""
        key = _key(live)
        if self._receiving.pop(key, None) is None:
            self._endpoint.decline(key, reason)
            return False
        self._moving[key] = live.blocks
        self._endpoint.abort_receiving(key, reason)
        return True

    # ---- both

    def poll(self) -> Settled:
        """Return what has ended; WrongKvError when it is not what it should be."""
        ended, settled = self._endpoint.poll(), Settled()
        for key in [*ended.sent, *ended.send_failed, *ended.received, *ended.receive_failed]:
            if key in self._moving:
                settled.free.append(self._moving.pop(key))
        for key in [*ended.sent, *ended.send_failed]:
            self._sending.pop(key, None)
            self._whole.discard(key)
        for key in ended.received:
            if key not in self._receiving:
                continue
            live, first_block = self._receiving.pop(key)
            self._verify(live, first_block)
            settled.arrived.append(live)
        for key, reason in ended.receive_failed.items():
            if key in self._receiving:
                live, _ = self._receiving.pop(key)
                log.warning("KV of %s is recomputed: %s", live.request_id, reason)
                settled.failed.append(live)
        return settled

    def _verify(self, live: Live, first_block: int) -> None:
        for index, value in enumerate(_contents(live, len(live.tokens), self._block_size)):
            for layer, cache in enumerate(self._caches):
                if index >= first_block and not bool((cache[live.blocks[index]] == value).all()):
                    raise WrongKvError(
                        f"block {index} of {live.request_id} arrived with the KV of something else in layer {layer}"
                    )


def _key(live: Live) -> TransferKey:
    transfer = live.request.kv_transfer
    assert transfer is not None
    return TransferKey(transfer.transfer_id, transfer.generation)


def _contents(live: Live, tokens: int, block_size: int) -> list[int]:
    """Return what each block holds once the first `tokens` tokens are computed, the last one perhaps in part."""
    full = tokens // block_size
    known = live.hashes[:full] if len(live.hashes) >= full else live.hashes
    values = block_hashes(live.tokens[:tokens], block_size, known)
    if tokens > full * block_size:
        values.append(hash((values[-1] if values else 0, *live.tokens[full * block_size : tokens])))
    return values
