"""The connector's half beside the caches: drives a KvEndpoint with what the scheduler's half planned."""

from __future__ import annotations

import logging

import torch

from engine.kv.config import Identity, KvConfig, KvExchangeError, TransferKey
from engine.kv.endpoint import KvEndpoint
from engine.vllm.kv.scheduler import Progress, StepMetadata
from engine.vllm.kv.settings import rank_address

log = logging.getLogger(__name__)


class WorkerHalf:
    """One per process that holds caches. Nothing here waits for the network."""

    def __init__(self, identity: Identity, config: KvConfig) -> None:
        """The endpoint starts when the caches are known."""
        self._identity = identity
        self._config = config
        self._endpoint: KvEndpoint | None = None
        self._layers: dict[str, int] = {}
        self._progress: list[Progress] = []
        self._sends: dict[TransferKey, str] = {}
        self._loads: dict[TransferKey, tuple[str, list[int]]] = {}
        self._refused: dict[TransferKey, str] = {}
        self._finished: set[str] = set()
        self._done_sends: set[str] = set()
        self._bad_blocks: set[int] = set()

    def register(self, caches: dict[str, torch.Tensor], num_blocks: int) -> None:
        """Open the endpoint over the engine's caches, by layer name in the model's order."""
        self._layers = {name: index for index, name in enumerate(caches)}
        self._endpoint = KvEndpoint(list(caches.values()), num_blocks, self._identity, self._config)
        log.info("KV exchange listens at %s", self._endpoint.address)

    def begin_step(self, meta: StepMetadata) -> None:
        """Act on the plan before the step's forward pass may overwrite a block."""
        endpoint = self._endpoint
        if endpoint is None:
            return
        for key, reason in meta.aborted_sends.items():
            endpoint.abort_sending(key, reason)
        for key in meta.declined:
            endpoint.decline(key, "the decode worker holds this prompt already")
        for offer in meta.offers:
            self._sends[offer.key] = offer.vllm_id
            try:
                endpoint.offer(offer.key, rank_address(offer.address, self._identity.tp_rank), offer.lease_s)
            except KvExchangeError as error:
                log.warning("KV transfer %s was not offered: %s", offer.key, error)
                self._done_sends.add(self._sends.pop(offer.key))
        for expectation in meta.expectations:
            self._loads[expectation.key] = (
                expectation.vllm_id,
                expectation.block_ids[expectation.first_block :],
            )
            try:
                endpoint.expect(
                    expectation.key,
                    expectation.block_ids,
                    expectation.first_block,
                    expectation.lease_s,
                    expectation.peer,
                )
            except KvExchangeError as error:
                self._refused[expectation.key] = str(error)
        for progress in meta.progress:
            endpoint.grow(progress.key, progress.block_ids, progress.total_blocks)
        self._progress = meta.progress

    def layer_computed(self, name: str, cache: torch.Tensor) -> None:
        """A layer's KV of this step has been written, or will have been when the device gets here."""
        endpoint, layer = self._endpoint, self._layers.get(name)
        if endpoint is None or layer is None or not self._progress:
            return
        event = None
        if cache.is_cuda:
            event = torch.cuda.Event()
            event.record()
        for progress in self._progress:
            endpoint.computed(progress.key, layer, progress.computed_blocks, event)

    def end_step(self) -> None:
        """Forget the step; its transfers go on by themselves."""
        self._progress = []

    def ended(self, finished: set[str]) -> tuple[set[str], set[str]]:
        """Return vLLM ids of requests whose sends and whose loads have ended; finished: requests that have."""
        self._finished |= finished
        endpoint = self._endpoint
        if endpoint is None:
            return set(), set()
        for key, (vllm_id, _) in list(self._loads.items()):
            if vllm_id in finished:
                endpoint.abort_receiving(key, "the request was cancelled on the decode worker")
        results = endpoint.poll()
        for key, reason in results.send_failed.items():
            log.warning("KV of transfer %s did not leave: %s", key.transfer_id, reason)
        for key in [*results.sent, *results.send_failed]:
            if key in self._sends:
                self._done_sends.add(self._sends.pop(key))
        received: set[str] = set()
        for key in results.received:
            if key in self._loads:
                received.add(self._loads.pop(key)[0])
        refused, self._refused = self._refused, {}
        for key, reason in {**results.receive_failed, **refused}.items():
            if key in self._loads:
                vllm_id, blocks = self._loads.pop(key)
                received.add(vllm_id)
                if vllm_id not in self._finished:
                    log.warning("KV of transfer %s did not arrive and is recomputed: %s", key.transfer_id, reason)
                    self._bad_blocks |= set(blocks)
        sent = self._done_sends & self._finished
        self._done_sends -= sent
        self._finished -= sent
        waiting = set(self._sends.values()) | self._done_sends
        self._finished &= waiting
        return sent, received

    def take_bad_blocks(self) -> set[int]:
        """Return and forget the blocks whose load failed since the last call."""
        blocks, self._bad_blocks = self._bad_blocks, set()
        return blocks

    def close(self) -> None:
        """Close the endpoint."""
        if self._endpoint is not None:
            self._endpoint.close()
