"""Settings of the real engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NgramSpeculation:
    """Speculation by n-gram look-up in the request's own tokens; needs no draft model.

    draft_tokens: most tokens drafted per step; the policy may use fewer. lookup_min, lookup_max: length of the n-gram.
    """

    draft_tokens: int = 4
    lookup_min: int = 2
    lookup_max: int = 4


@dataclass(frozen=True, slots=True)
class KvConnector:
    """A KV connector class of ours that vLLM loads; extra goes to it as kv_connector_extra_config.

    role: "kv_producer", "kv_consumer" or "kv_both". environment: what it reads from there. needs_handle: a decode half
    begins when the prefill engine has said where its KV lies (Engine.hand_over).
    """

    name: str
    module: str
    role: str = "kv_both"
    extra: dict[str, object] | None = None
    environment: dict[str, str] | None = None
    needs_handle: bool = False


@dataclass(frozen=True, slots=True)
class VllmConfig:
    """How one vLLM engine is started. Sizes are tokens unless the name says otherwise.

    model_dir: folder with safetensors, tokenizer and chat template.
    dtype: "auto" takes float16 on CPUs with native float16 arithmetic, float32 on other CPUs, and the model's own on
        GPUs. bfloat16 gave wrong tokens with the small model.
    max_num_batched_tokens: most tokens computed in one step; max_num_seqs: most requests resident at once.
    kv_cache_gib: KV cache on CPUs, whole GiB; gpu_memory_utilization: share of a GPU's memory for weights and KV;
        kv_blocks: KV blocks outright, in place of either.
    omp_threads_bind: cores of the CPU engine, as VLLM_CPU_OMP_THREADS_BIND takes them ("0-1", "0|1" per rank), or
        "auto": all but one core of each NUMA node.
    other_cores: cores for EngineCore and for the process that holds the engine, such as "0" or "0,2-3" (CPU engines
        only); empty: any.
    policy: batch policy by name (scheduling.registry), or "stock" for vLLM's own scheduler; see engine.vllm.policies.
    time_model_json: what scheduling.time_model.TimeModel.to_json wrote; empty until a profile has run.
    best_effort_floor: share of time kept for best-effort work, where the policy has that setting.
    text_lag_s: longest time the planner's state of a step waits for the text of that step.
    """

    model_dir: Path
    dtype: str = "auto"
    max_model_len: int = 4096
    max_num_batched_tokens: int = 1024
    max_num_seqs: int = 64
    kv_cache_gib: int = 1
    kv_blocks: int | None = None
    omp_threads_bind: str = "auto"
    other_cores: str = ""
    enforce_eager: bool = True
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    prefix_caching: bool = True
    speculation: NgramSpeculation | None = None
    kv_connector: KvConnector | None = None
    kv_address: str = ""
    policy: str = "slos"
    time_model_json: str = ""
    best_effort_floor: float | None = None
    seed: int = 0
    hardware: str = ""
    start_timeout_s: float = 600.0
    text_lag_s: float = 0.5
    quiet: bool = True

    def __post_init__(self) -> None:
        """Check what vLLM would only report minutes later, or not at all."""
        for name in ("max_model_len", "max_num_batched_tokens", "max_num_seqs", "tensor_parallel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.kv_cache_gib < 1 or self.kv_cache_gib != int(self.kv_cache_gib):
            raise ValueError(f"kv_cache_gib must be a whole number of GiB, at least 1, not {self.kv_cache_gib}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): every decoding request computes a token per step"
            )
        if self.dtype not in ("auto", "float16", "bfloat16", "float32"):
            raise ValueError(f"dtype must be auto, float16, bfloat16 or float32, not {self.dtype!r}")
