"""The KV connector that vLLM loads (kv_connector_module_path): one instance in the scheduler, one beside the caches."""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

from engine.kv.config import Identity
from engine.vllm.kv.scheduler import SchedulerHalf, StepMetadata
from engine.vllm.kv.settings import read_extra
from engine.vllm.kv.worker import WorkerHalf


class KvExchangeConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Both halves behind vLLM's interface; see scheduler.py and worker.py."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """Take vLLM's arguments and make the half that the role asks for."""
        super().__init__(vllm_config, role, kv_cache_config)
        self.scheduler_half: SchedulerHalf | None = None
        self.worker_half: WorkerHalf | None = None
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        tp_size = vllm_config.parallel_config.tensor_parallel_size
        if role == KVConnectorRole.SCHEDULER:
            self.scheduler_half = SchedulerHalf(vllm_config.cache_config.block_size)
            self._prompts: dict[str, int] = {}
        else:
            rank = get_tensor_model_parallel_rank() if tp_size > 1 else 0
            identity = Identity(str(extra["worker"]), str(extra["model"]), rank, tp_size)
            self.worker_half = WorkerHalf(identity, read_extra(extra, rank))

    # In the scheduler.

    @property
    def _scheduler(self) -> SchedulerHalf:
        assert self.scheduler_half is not None
        return self.scheduler_half

    @property
    def requires_kv_delivery(self) -> bool:
        """A hand-over that preemption interrupts is repaired by the consumer, which recomputes."""
        return False

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        """Take the manager that knows the blocks of a request."""
        super().bind_kv_cache_manager(kv_cache_manager)
        self._scheduler.bind(kv_cache_manager)

    def on_new_request(self, request: Any) -> None:
        """Announce an outgoing transfer as soon as its request is here."""
        params = request.kv_transfer_params
        if params and params["producer"]:
            self._prompts[request.request_id] = request.num_prompt_tokens
        self._scheduler.new_request(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Prompt tokens that will arrive from the peer, asynchronously."""
        tokens = self._scheduler.tokens_to_load(request, num_computed_tokens)
        return tokens, tokens > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Blocks for the arriving tokens are allocated."""
        (block_ids,) = blocks.get_block_ids()
        self._scheduler.allocated(request, list(block_ids), num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> StepMetadata:
        """Tell the workers' half what this step does."""
        return self._scheduler.take_metadata(scheduler_output, self._prompts)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Keep the blocks of an outgoing transfer until they have left."""
        self._prompts.pop(request.request_id, None)
        return self._scheduler.finished(request), None

    def update_connector_output(self, connector_output: Any) -> None:
        """Take the workers' report of a step."""
        sent, received = connector_output.finished_sending, connector_output.finished_recving
        self._scheduler.workers_report(set(sent or ()), set(received or ()))

    def has_pending_push_work(self) -> bool:
        """Keep the engine stepping while blocks of finished requests are being sent or received."""
        return self._scheduler.has_pending_work()

    # Beside the caches.

    @property
    def _worker(self) -> WorkerHalf:
        assert self.worker_half is not None
        return self.worker_half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Open the endpoint."""
        self._worker.register(kv_caches, self._kv_cache_config.num_blocks)

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        """Begin a step; vLLM calls this before the forward pass."""
        super().bind_connector_metadata(connector_metadata)
        self._worker.begin_step(connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Loads were started with the step: they run beside it."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are asynchronous: no layer of a running request waits for one."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """A layer's KV may leave while the next layer is computed."""
        self._worker.layer_computed(layer_name, kv_layer)

    def wait_for_save(self) -> None:
        """Sends are asynchronous: blocks are kept until get_finished names their request."""
        self._worker.end_step()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose sends and whose loads have ended."""
        sent, received = self._worker.ended(finished_req_ids)
        return sent or None, received or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that did not arrive; vLLM recomputes them."""
        return self._worker.take_bad_blocks()

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """save_kv_layer must run between the layers, which a full CUDA graph would skip."""
        return True

    def shutdown(self) -> None:
        """Close the endpoint."""
        if self.worker_half is not None:
            self.worker_half.close()
