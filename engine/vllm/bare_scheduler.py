"""vLLM's queues and KV blocks, stepped by hand without a model: random tokens come out at once.

Tests and benchmarks see here what a scheduler does, and what it costs, in thousands of steps per second.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from engine.vllm import adapter
from engine.vllm.config import VllmConfig
from engine.vllm.messages import REQUEST_ARG, RequestFacts

VLLM_SCHEDULERS: tuple[type[Scheduler], ...] = (Scheduler, AsyncScheduler)
"""vLLM's own: the plain one, and the one that does not wait for a step's tokens before it plans the next."""


class BareScheduler:
    """Steps a scheduler by hand."""

    def __init__(
        self,
        config: VllmConfig,
        blocks: int,
        block_size: int,
        seed: int = 0,
        scheduler_class: type[Scheduler] = Scheduler,
    ) -> None:
        """Build vLLM's configuration, and from it a scheduler: vLLM's own, or one derived from it."""
        adapter.set_environment(config)
        self.folder = tempfile.TemporaryDirectory(prefix="slos-")
        arguments = adapter.engine_arguments(config, str(Path(self.folder.name) / "steps.sock"))
        arguments["block_size"] = block_size
        vllm_config = AsyncEngineArgs(**arguments).create_engine_config()
        vllm_config.cache_config.num_gpu_blocks = blocks
        spec = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
        kv = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
        self.scheduler: Any = scheduler_class(
            vllm_config=vllm_config,
            kv_cache_config=kv,
            structured_output_manager=StructuredOutputManager(vllm_config),
            block_size=block_size,
            log_stats=False,
        )
        self.block_size = block_size
        self.random = random.Random(seed)
        self.outputs: dict[str, list[int]] = {}
        self.finished: dict[str, Any] = {}
        self.step_s = 0.0
        """What the scheduler took for the last step, seconds."""
        hash_function = get_hash_fn_by_name(vllm_config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hash_function)
        self._hasher = get_request_block_hasher(block_size, hash_function)

    def add(self, request_id: str, tokens: list[int], outputs: int, **facts: Any) -> None:
        """Add a request that ends after `outputs` tokens."""
        values = {"standard": True, "arrival_s": 0.0, "first_token_due_s": 1e9, "tpot_s": 1.0, **facts}
        given = msgspec.to_builtins(RequestFacts(request_id=request_id, **values))
        params = SamplingParams(max_tokens=outputs, ignore_eos=True, temperature=0.0, extra_args={REQUEST_ARG: given})
        self.outputs[request_id] = []
        self.scheduler.add_request(Request(f"{request_id}-00000000", tokens, params, None, block_hasher=self._hasher))

    def abort(self, request_id: str) -> None:
        """Cancel a request."""
        self.scheduler.finish_requests(f"{request_id}-00000000", RequestStatus.FINISHED_ABORTED)

    def step(self) -> Any:
        """One step; returns what vLLM scheduled."""
        begin_s = time.perf_counter()
        scheduled = self.scheduler.schedule()
        self.step_s = time.perf_counter() - begin_s
        ids = list(scheduled.num_scheduled_tokens)
        sampled = []
        for vllm_id in ids:
            request = self.scheduler.requests[vllm_id]
            produces = request.num_computed_tokens >= request.num_tokens
            sampled.append([self.random.randrange(3, 40_000)] if produces else [])
        result = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={vllm_id: place for place, vllm_id in enumerate(ids)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        begin_s = time.perf_counter()
        by_client = self.scheduler.update_from_output(scheduled, result)
        self.step_s += time.perf_counter() - begin_s
        for outputs in by_client.values():
            for output in outputs.outputs:
                request_id = output.request_id.rpartition("-")[0]
                self.outputs[request_id] += output.new_token_ids
                if output.finish_reason is not None:
                    self.finished[request_id] = output.finish_reason
        return scheduled

    @property
    def free_blocks(self) -> int:
        """Free blocks of the pool."""
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def close(self) -> None:
        """Release the socket."""
        self.scheduler.shutdown()
        self.folder.cleanup()
