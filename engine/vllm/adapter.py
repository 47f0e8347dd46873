"""Everything that our engine's process takes from vLLM. Written for vLLM 0.32 (pinned).

The step scheduler inside vLLM's process is in step_scheduler.py, the logits processor in resume.py, the way its
processes wait for each other in waiting.py.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.protocol import EngineError, EngineRequest, RequestRejected, TokenLogprob
from engine.vllm.config import VllmConfig
from engine.vllm.sampling import PRIOR_ARG, sampling_params

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

STEP_SCHEDULER = "engine.vllm.step_scheduler.StepScheduler"
SLEEPING_WORKER = "engine.vllm.waiting.SleepingWorker"
PENALTIES = "engine.vllm.resume:PriorOutputPenalties"


@dataclass(frozen=True, slots=True)
class Output:
    """What one step gave for one request; finish_reason is "", "stop", "length", "cancelled" or "error".

    kv_handle: where its KV lies, JSON, at the end of a prefill half whose connector says so.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[tuple[TokenLogprob, ...], ...]
    finish_reason: str
    error: str
    kv_handle: str = ""


OnOutput = Callable[[str, Output], None]


def set_environment(config: VllmConfig) -> None:
    """Set what vLLM reads from the environment only; before it is imported."""
    env = {
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": config.omp_threads_bind,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # EngineCore is a fresh process: it must not inherit the threads, sockets and event loop of this one.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # The worker process does not go by itself for as long as this; nothing is lost when it is told to.
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",
    }
    if config.kv_connector is not None:
        env.update(config.kv_connector.environment or {})
    os.environ.update(env)
    # A folder on the path is an import path (engine.vllm...): vLLM's processes must find it from any directory.
    root = str(Path(__file__).resolve().parents[2])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])
    if config.quiet:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def resolve_dtype(config: VllmConfig) -> str:
    """Choose the dtype that vLLM is started with.

    Without native float16 arithmetic a CPU computes float16 and bfloat16 matrices one element at a time: on an AVX2
    machine prompts ran 5 to 10 times slower than in float32, and bfloat16 also gave wrong tokens.
    """
    if config.dtype != "auto":
        return config.dtype
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return "auto"
    return "float16" if "avx512_fp16" in _cpu_flags() else "float32"


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def is_cpu() -> bool:
    """Whether this vLLM is built for CPUs."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def kv_layout(config: VllmConfig, block_size: int) -> str:
    """Form of the KV and the way it travels, which two engines must share; block_size in tokens."""
    from vllm.platforms import current_platform

    assert config.kv_connector is not None
    way = str((config.kv_connector.extra or {}).get("backend", "auto"))
    if way == "auto":
        way = "gloo" if current_platform.is_cpu() else "nccl"
    return (
        f"{config.kv_connector.name} over {way}, {current_platform.device_type}, {resolve_dtype(config)}, "
        f"blocks of {block_size} tokens, tensor parallel {config.tensor_parallel_size}"
    )


def version() -> str:
    """Installed version of vLLM."""
    import vllm

    return str(vllm.__version__)


def make_llm(config: VllmConfig, socket_path: str, on_output: OnOutput) -> AsyncLLM:
    """Start vLLM's engine process and wait until it is up (20 s on a small machine). Blocks: call it in a thread."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer
    from vllm.v1.engine.output_processor import RequestOutputCollector

    from engine.vllm.resume import seed_detokenizer

    class Collector(RequestOutputCollector):
        """Hands every output on at once, where vLLM's own would merge the outputs of several steps."""

        def __init__(self, kind: Any, internal_id: str, external_id: str) -> None:
            super().__init__(kind, internal_id)
            self._external_id = external_id

        def put(self, output: Any) -> None:
            on_output(self._external_id, _convert(output))

    class Llm(AsyncLLM):
        """AsyncLLM that hands outputs to a callback, and knows requests with prior output."""

        async def _add_request(self, request: Any, prompt: Any, parent_req: Any, index: int, queue: Any) -> None:
            params = request.sampling_params
            collector = Collector(params.output_kind, request.request_id, request.external_req_id)
            self.output_processor.add_request(request, prompt, parent_req, index, collector)
            if prior := (params.extra_args or {}).get(PRIOR_ARG):
                state = self.output_processor.request_states[request.request_id]
                split = prior["prompt_tokens"]
                original = copy.copy(request)
                original.prompt_token_ids = request.prompt_token_ids[:split]
                state.detokenizer = IncrementalDetokenizer.from_new_request(self.output_processor.tokenizer, original)
                seed_detokenizer(state.detokenizer, request.prompt_token_ids[split:], prior["text_chars"])
            await self.engine_core.add_request_async(request)

    args = AsyncEngineArgs(**engine_arguments(config, socket_path))
    return Llm.from_engine_args(args, usage_context=UsageContext.ENGINE_CONTEXT)


def engine_arguments(config: VllmConfig, socket_path: str) -> dict[str, Any]:
    """Make the arguments of vLLM's AsyncEngineArgs."""
    args: dict[str, Any] = {
        "model": str(config.model_dir),
        "dtype": resolve_dtype(config),
        "max_model_len": config.max_model_len,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": config.enforce_eager,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enable_prefix_caching": config.prefix_caching,
        "seed": config.seed,
        "disable_log_stats": True,
        "scheduler_cls": STEP_SCHEDULER,
        "worker_extension_cls": SLEEPING_WORKER,
        "additional_config": {
            "slos_socket": socket_path,
            "slos_policy": config.policy,
            "slos_time_model": config.time_model_json,
            "slos_best_effort_floor": config.best_effort_floor,
        },
    }
    if config.kv_blocks is not None:
        # One block is vLLM's own null block.
        args["num_gpu_blocks_override"] = config.kv_blocks + 1
    if not is_cpu():
        args["gpu_memory_utilization"] = config.gpu_memory_utilization
    if config.speculation is not None:
        args["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": config.speculation.draft_tokens,
            "prompt_lookup_min": config.speculation.lookup_min,
            "prompt_lookup_max": config.speculation.lookup_max,
        }
    else:
        args["logits_processors"] = [PENALTIES]
    if config.kv_connector is not None:
        from vllm.config import KVTransferConfig

        connector = config.kv_connector
        args["kv_transfer_config"] = KVTransferConfig(
            kv_connector=connector.name,
            kv_connector_module_path=connector.module,
            kv_role=connector.role,
            kv_connector_extra_config=connector.extra or {},
            # KV that does not arrive costs a prefill, never a request.
            kv_load_failure_policy="recompute",
        )
    return args


async def add_request(llm: AsyncLLM, config: VllmConfig, request: EngineRequest, kv_handle: str = "") -> None:
    """Hand a request to vLLM; RequestRejected says what is wrong with it. kv_handle: see Engine.hand_over."""
    from vllm.exceptions import VLLMClientError
    from vllm.inputs.engine import tokens_input
    from vllm.v1.engine.exceptions import EngineDeadError

    params = sampling_params(config, request, kv_handle)
    try:
        await llm.add_request(request.request_id, tokens_input(list(request.token_ids)), params)
    except EngineDeadError as error:
        raise EngineError("the engine process is gone; start the engine again") from error
    except (VLLMClientError, ValueError, TypeError, NotImplementedError) as error:
        raise RequestRejected("INVALID_ARGUMENT", str(error)) from error


def _convert(output: RequestOutput | Exception) -> Output:
    if isinstance(output, Exception):
        return Output((), "", (), "error", f"the engine failed: {output}")
    (completion,) = output.outputs
    tokens = tuple(completion.token_ids)
    logprobs = tuple(
        _position(token, position) for token, position in zip(tokens, completion.logprobs or (), strict=False)
    )
    reason, error = completion.finish_reason or "", ""
    if reason == "abort":
        reason = "cancelled"
    elif reason not in ("", "stop", "length"):
        reason, error = "error", f"vLLM ended the request: {completion.finish_reason} {completion.stop_reason or ''}"
    handle = json.dumps(output.kv_transfer_params) if output.kv_transfer_params else ""
    return Output(tokens, completion.text, logprobs, reason, error, handle)


def _position(chosen: int, candidates: Any) -> tuple[TokenLogprob, ...]:
    """Logprobs at one position, the chosen token first, then by rank."""
    rest = sorted((t for t in candidates if t != chosen), key=lambda t: candidates[t].rank or 0)
    return tuple(
        TokenLogprob(t, float(candidates[t].logprob), candidates[t].rank or 0, candidates[t].decoded_token or "")
        for t in (chosen, *rest)
        if t in candidates
    )
