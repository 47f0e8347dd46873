"""What is found out before an engine starts: whether it can, and on what it will run."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from engine.protocol import EngineError
from engine.vllm import adapter, policies


def check_model_dir(folder: Path) -> None:
    """EngineError when this is no folder of a model."""
    if not folder.is_dir():
        raise EngineError(
            f"no model folder {folder}: give one with config.json, safetensors and tokenizer, or make the small one "
            f"with `python -m engine.vllm.model --out {folder}`"
        )
    if not (folder / "config.json").is_file():
        raise EngineError(f"{folder} holds no config.json, so it is not a model folder")


def check_policy(name: str, best_effort_floor: float | None) -> None:
    """EngineError when there is no such batch policy, or the floor is not one."""
    try:
        policies.load(name, best_effort_floor)
    except ValueError as error:
        raise EngineError(f"{error}; or {policies.STOCK!r} for vLLM's own scheduler") from error


def hardware() -> str:
    """Name of what computes, for people and for the key of time models."""
    if not adapter.is_cpu():
        from vllm.platforms import current_platform

        return str(current_platform.get_device_name())
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({os.cpu_count()} cores)"
    return platform.processor() or platform.machine()
