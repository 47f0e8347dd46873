"""Which engine a worker runs, and with which settings."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.kv.config import KvConfig
from engine.protocol import Engine, EngineError
from scheduling.registry import DEFAULT_POLICY
from scheduling.time_model import TimeModel
from services.common.model_folder import tokenizer_hash

NO_TOKENIZER = "emulated"
"""Stands for the tokenizer's hash where an emulated engine has no model folder."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Settings of either engine; None leaves the engine's own default. Sizes in tokens unless named otherwise.

    spec_tokens: most tokens drafted per step and request, 0 for no speculation. time_model: JSON file, emulated only.
    """

    engine: str = "vllm"
    model_path: Path | None = None
    model_name: str = ""
    policy: str = DEFAULT_POLICY
    hardware: str = ""
    seed: int = 0
    max_model_len: int | None = None
    max_batch_tokens: int | None = None
    max_batch_requests: int | None = None
    kv_blocks: int | None = None
    spec_tokens: int = 0
    prefix_caching: bool = True
    dtype: str | None = None
    cpu_cores: str = ""
    other_cores: str = ""
    kv_cache_gib: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int | None = None
    enforce_eager: bool | None = None
    time_model: Path | None = None
    time_scale: float = 1.0
    time_noise: float = 0.0
    accept_rate: float = 0.7
    output_mean: float | None = None


@dataclass(frozen=True, slots=True)
class KvEnd:
    """The engine's end of the KV exchange: the worker's name, the settings, and the size of an emulated block.

    transport: "torch" or "nixl".
    """

    worker_id: str
    config: KvConfig
    emulated_block_bytes: int = 256
    transport: str = "torch"


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine that is not started yet.

    model: name that requests use. settings_key: the settings that change how long steps take, for the key of the
    time model; empty when its time models are not worth keeping.
    """

    engine: Engine
    model: str
    tokenizer_hash: str
    settings_key: str


def build(options: EngineOptions, kv: KvEnd | None = None) -> BuiltEngine:
    """Make the engine, with KV exchange if kv is given; EngineError says which setting is wrong."""
    try:
        if options.engine == "emulated":
            return _emulated(options, kv)
        if options.engine == "vllm":
            return _vllm(options, kv)
    except (ValueError, OSError) as error:
        raise EngineError(f"The engine's settings cannot be used: {error}") from error
    raise EngineError(f"unknown engine {options.engine!r}; use vllm or emulated")


def _emulated(options: EngineOptions, kv: KvEnd | None) -> BuiltEngine:
    from engine.emulated import EmulatedConfig, EmulatedEngine

    config = EmulatedConfig(
        model=options.model_name or (options.model_path.name if options.model_path else "emulated"),
        policy=options.policy,
        seed=options.seed,
        max_spec_tokens=options.spec_tokens + 1,
        accept_rate=options.accept_rate,
        prefix_caching=options.prefix_caching,
        time_scale=options.time_scale,
        time_noise=options.time_noise,
    )
    given: dict[str, Any] = {
        "max_model_len": options.max_model_len,
        "max_batch_tokens": options.max_batch_tokens,
        "max_batch_requests": options.max_batch_requests,
        "kv_blocks": options.kv_blocks,
        "output_mean": options.output_mean,
        "hardware": options.hardware or None,
    }
    if kv is not None and kv.transport != "torch":
        raise EngineError("Emulated engines exchange KV over --kv-transport torch only")
    if kv is not None:
        given |= {
            "worker_id": kv.worker_id,
            "kv_exchange": kv.config,
            "kv_block_bytes": kv.emulated_block_bytes,
        }
    if options.time_model:
        given["time_model"] = TimeModel.from_json(options.time_model.read_text())
    digest = NO_TOKENIZER
    if options.model_path:
        digest = tokenizer_hash(options.model_path)
        given |= _vocabulary(options.model_path)
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    return BuiltEngine(EmulatedEngine(config), config.model, digest, "")


def _vocabulary(folder: Path) -> dict[str, Any]:
    """Return what a model folder says of the vocabulary, so that an emulated model speaks in its ids."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    facts = json.loads(path.read_text())
    eos = facts.get("eos_token_id")
    return {"vocab_size": facts.get("vocab_size"), "eos_token_id": eos[0] if isinstance(eos, list) else eos}


def _vllm(options: EngineOptions, kv: KvEnd | None) -> BuiltEngine:
    if options.model_path is None:
        raise EngineError("The vLLM engine needs a model folder: give --model-path or set SLOS_MODEL_PATH")
    try:
        from engine.vllm.config import NgramSpeculation, VllmConfig
        from engine.vllm.engine import VllmEngine
        from engine.vllm.kv.settings import with_kv_exchange
    except ImportError as error:
        raise EngineError(
            f"vLLM is not installed here ({error}); run deploy/install.sh or use --engine emulated"
        ) from error
    given: dict[str, Any] = {
        "dtype": options.dtype,
        "max_model_len": options.max_model_len,
        "max_num_batched_tokens": options.max_batch_tokens,
        "max_num_seqs": options.max_batch_requests,
        "kv_blocks": options.kv_blocks,
        "kv_cache_gib": options.kv_cache_gib,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "tensor_parallel_size": options.tensor_parallel_size,
        "enforce_eager": options.enforce_eager,
        "omp_threads_bind": options.cpu_cores or None,
        "other_cores": options.other_cores,
        "speculation": NgramSpeculation(draft_tokens=options.spec_tokens) if options.spec_tokens else None,
    }
    config = VllmConfig(
        model_dir=options.model_path,
        policy=options.policy,
        seed=options.seed,
        hardware=options.hardware,
        prefix_caching=options.prefix_caching,
        **{name: value for name, value in given.items() if value is not None},
    )
    if kv is not None and kv.transport == "nixl":
        from engine.vllm.kv.nixl_settings import with_nixl

        config = with_nixl(config, kv.config)
    elif kv is not None:
        config = with_kv_exchange(config, kv.worker_id, kv.config)
    # Where the cores are matters less than how many there are.
    threads = len(options.cpu_cores.split(",")) if options.cpu_cores else "auto"
    settings = {
        "dtype": config.dtype,
        "batch_tokens": config.max_num_batched_tokens,
        "batch_requests": config.max_num_seqs,
        "tensor_parallel": config.tensor_parallel_size,
        "eager": config.enforce_eager,
        "spec_tokens": options.spec_tokens,
        "threads": threads,
    }
    name = options.model_name or options.model_path.name
    digest = tokenizer_hash(options.model_path)
    return BuiltEngine(VllmEngine(config), name, digest, json.dumps(settings, sort_keys=True))
