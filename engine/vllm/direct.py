"""vLLM's AsyncLLM with nothing of ours inside or around it: the yardstick that benchmarks compare the cluster with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from engine.protocol import EngineError
from engine.vllm import adapter, cores
from engine.vllm.config import VllmConfig

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


class DirectVllm:
    """Sizes, dtype and thread binding as config says; scheduler, queues and outputs are vLLM's own."""

    def __init__(self, config: VllmConfig) -> None:
        """Nothing is started yet."""
        self._config = config
        self._llm: AsyncLLM | None = None
        self._free_cores: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Load the model; EngineError when it does not come up in time."""
        adapter.set_environment(self._config)
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                self._llm = await asyncio.to_thread(_make, self._config)
        except TimeoutError as error:
            raise EngineError(f"vLLM was not up after {self._config.start_timeout_s:.0f} s; see its log") from error
        if adapter.is_cpu():
            # The same cores as the engine of the cluster that this one is compared with.
            self._free_cores = cores.keep_to(self._config.other_cores)

    async def generate(self, request_id: str, token_ids: Sequence[int], max_tokens: int) -> AsyncIterator[int]:
        """Greedy output of exactly max_tokens tokens; yields how many tokens came each time."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        if self._llm is None:
            raise EngineError("the engine is not running: await start() first")
        params = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA
        )
        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        async for output in self._llm.generate(prompt, params, request_id):
            yield len(output.outputs[0].token_ids)

    async def close(self) -> None:
        """Stop the engine and its processes; safe to call twice."""
        if self._llm is not None:
            llm, self._llm = self._llm, None
            await asyncio.to_thread(llm.shutdown)
        self._free_cores()


def _make(config: VllmConfig) -> AsyncLLM:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=str(config.model_dir),
        dtype=adapter.resolve_dtype(config),  # type: ignore[arg-type]
        max_model_len=config.max_model_len,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        enforce_eager=config.enforce_eager,
        tensor_parallel_size=config.tensor_parallel_size,
        enable_prefix_caching=config.prefix_caching,
        seed=config.seed,
        disable_log_stats=True,
        **({} if adapter.is_cpu() else {"gpu_memory_utilization": config.gpu_memory_utilization}),
    )
    return AsyncLLM.from_engine_args(arguments)
