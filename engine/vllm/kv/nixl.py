"""vLLM's own NixlConnector, for RDMA fabrics, in the place of our exchange: --kv-transport nixl.

The decode engine fetches the KV when the prefill engine has all of it, and must first be told where it lies. So the
prefill half's last update carries a handle, which comes to the decode engine by way of the controller
(Engine.hand_over). Leases, heartbeats and the recompute after a failure are the connector's.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import connector as vllm_nixl


class NixlConnector(vllm_nixl.NixlConnector):  # type: ignore[misc]
    """vLLM's, but an engine with nothing else to do goes on stepping while blocks of its requests wait to be fetched.

    Without that the blocks of a request that nobody comes for would be kept until the next request. vLLM knows the
    class by its name in some checks of its configuration.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """Take vLLM's arguments."""
        super().__init__(vllm_config, role, kv_cache_config)
        self._unfetched: set[str] = set()
        self._found: dict[str, int] = {}

    @property
    def scheduler_half(self) -> NixlConnector:
        """What the step scheduler asks for found_here."""
        return self

    def found_here(self, vllm_id: str, context: int) -> int:
        """Tokens of a starting request's context that its own engine's prefix cache held, not a peer."""
        return min(context, self._found.get(vllm_id, context))

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Prompt tokens to fetch from the peer."""
        found = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if found[0]:
            self._found[request.request_id] = num_computed_tokens
        return found  # type: ignore[no-any-return]

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        """Keep the blocks of a prefill half until they have been fetched, or nobody has come for them in time."""
        kept, params = super().request_finished_all_groups(request, block_ids)
        self._found.pop(request.request_id, None)
        if kept:
            self._unfetched.add(request.request_id)
        return kept, params

    def update_connector_output(self, connector_output: Any) -> None:
        """Take the workers' report of a step."""
        super().update_connector_output(connector_output)
        self._unfetched -= set(connector_output.finished_sending or ())

    def has_pending_push_work(self) -> bool:
        """Keep the engine stepping while blocks wait, or while the workers are to be told something."""
        scheduler = self.connector_scheduler
        waiting = scheduler is not None and bool(scheduler._reqs_need_recv)
        return waiting or bool(self._unfetched) or super().has_pending_push_work()
