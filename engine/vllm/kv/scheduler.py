"""The connector's half inside vLLM's scheduler: which requests hand over or take over which blocks.

A request with kv_transfer_params {"producer": True, ...} is prefilled here and its blocks leave as they are computed;
one with producer False waits for its prompt's KV from the peer and recomputes when that fails.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

from engine.kv.config import TransferKey

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """A new outgoing transfer: lease_s bounds how long blocks are kept without word from the peer."""

    vllm_id: str
    key: TransferKey
    address: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Blocks of an outgoing transfer once this step has run; total_blocks is None before the last chunk."""

    key: TransferKey
    block_ids: list[int]
    computed_blocks: int
    total_blocks: int | None


@dataclass(frozen=True, slots=True)
class Expectation:
    """A new incoming transfer of blocks [first_block, len(block_ids))."""

    vllm_id: str
    key: TransferKey
    block_ids: list[int]
    first_block: int
    lease_s: float
    peer: str


@dataclass
class StepMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """What the scheduler's half tells the workers' half for one step."""

    offers: list[Offer] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    expectations: list[Expectation] = field(default_factory=list)
    aborted_sends: dict[TransferKey, str] = field(default_factory=dict)
    declined: list[TransferKey] = field(default_factory=list)


@dataclass(slots=True)
class _Outgoing:
    key: TransferKey
    address: str
    lease_s: float
    offered: bool = False
    whole: bool = False


class SchedulerHalf:
    """Keeps the transfers of the requests that the scheduler holds."""

    def __init__(self, block_size: int) -> None:
        """block_size: tokens per KV block."""
        self._block_size = block_size
        self._outgoing: dict[str, _Outgoing] = {}
        self._loading: set[str] = set()
        self._moving: set[str] = set()
        """Finished requests whose blocks are sent or received: vLLM keeps them until the workers say otherwise."""
        self._tried: set[str] = set()
        self._found: dict[str, int] = {}
        self._next = StepMetadata()
        self._manager: Any = None

    def bind(self, manager: Any) -> None:
        """Take the KV cache manager, which knows the blocks of a request."""
        self._manager = manager

    def has_pending_work(self) -> bool:
        """The engine must go on stepping: blocks of finished requests are in use, or the workers are to be told."""
        meta = self._next
        return bool(self._moving or meta.offers or meta.aborted_sends or meta.declined)

    def new_request(self, request: Any) -> None:
        """Announce the transfer of a request that will be prefilled here, so that the pair forms meanwhile."""
        params = request.kv_transfer_params
        if params and params["producer"] and request.request_id not in self._outgoing:
            key = TransferKey(params["transfer_id"], params["generation"])
            self._outgoing[request.request_id] = _Outgoing(key, params["peer_address"], params["lease_s"])
            self._next.offers.append(Offer(request.request_id, key, params["peer_address"], params["lease_s"]))

    def tokens_to_load(self, request: Any, computed_tokens: int) -> int:
        """Prompt tokens that the peer will send beyond computed_tokens; 0 when there is nothing to wait for."""
        params = request.kv_transfer_params
        if not params or params["producer"] or request.request_id in self._tried:
            return 0
        return max(0, int(request.num_prompt_tokens) - computed_tokens)

    def allocated(self, request: Any, block_ids: list[int], external_tokens: int) -> None:
        """The scheduler has made room for external_tokens, or needs none of them."""
        params = request.kv_transfer_params
        if not params or params["producer"] or request.request_id in self._tried:
            return
        self._tried.add(request.request_id)
        key = TransferKey(params["transfer_id"], params["generation"])
        if external_tokens == 0:
            self._next.declined.append(key)
            return
        first_token = request.num_prompt_tokens - external_tokens
        self._found[request.request_id] = first_token
        self._loading.add(request.request_id)
        blocks = -(-request.num_prompt_tokens // self._block_size)
        self._next.expectations.append(
            Expectation(
                request.request_id,
                key,
                block_ids[:blocks],
                first_token // self._block_size,
                params["lease_s"],
                params["peer"],
            )
        )

    def found_here(self, vllm_id: str, context: int) -> int:
        """Tokens of a starting request's context that its own engine's prefix cache held, not a peer."""
        return min(context, self._found.get(vllm_id, context))

    def take_metadata(self, output: Any, requests: dict[str, int]) -> StepMetadata:
        """Return what the workers are to do in this step.

        output: vLLM's SchedulerOutput. requests: prompt length (tokens) of the outgoing requests, by vLLM id.
        """
        meta, self._next = self._next, StepMetadata()
        for offer in meta.offers:
            if offer.vllm_id in self._outgoing:
                self._outgoing[offer.vllm_id].offered = True
        for vllm_id in output.preempted_req_ids or ():
            if vllm_id in self._outgoing:
                meta.aborted_sends[self._outgoing[vllm_id].key] = "the request was preempted on the prefill worker"
        if not self._outgoing:
            return meta
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for vllm_id, scheduled in output.num_scheduled_tokens.items():
            outgoing = self._outgoing.get(vllm_id)
            if outgoing is None or outgoing.whole or vllm_id not in requests:
                continue
            prompt = requests[vllm_id]
            done = min(computed[vllm_id] + scheduled, prompt)
            outgoing.whole = done == prompt
            total = -(-prompt // self._block_size) if outgoing.whole else None
            ready = total if total is not None else done // self._block_size
            (block_ids,) = self._manager.get_block_ids(vllm_id)
            meta.progress.append(Progress(outgoing.key, list(block_ids), ready, total))
        return meta

    def finished(self, request: Any) -> bool:
        """Settle a request that has ended; True when its blocks must be kept until the workers' half reports it."""
        vllm_id = request.request_id
        self._tried.discard(vllm_id)
        self._found.pop(vllm_id, None)
        if vllm_id in self._loading:
            self._moving.add(vllm_id)
        outgoing = self._outgoing.pop(vllm_id, None)
        if outgoing is None:
            return False
        if not outgoing.offered:
            self._next.offers = [offer for offer in self._next.offers if offer.vllm_id != vllm_id]
            return False
        if not outgoing.whole:
            self._next.aborted_sends[outgoing.key] = "the request ended before its prompt was computed"
        self._moving.add(vllm_id)
        return True

    def workers_report(self, sent: set[str], received: set[str]) -> None:
        """Take note of the sends and loads that ended in the last step, by vLLM id."""
        self._moving -= sent | received
        self._loading -= received
