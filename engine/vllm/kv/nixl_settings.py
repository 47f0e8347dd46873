"""What an engine and its requests are told to exchange KV by vLLM's NixlConnector; see nixl.py."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from typing import Any

from engine.kv.config import KvConfig
from engine.protocol import EngineError, KvTransferSpec
from engine.vllm.config import KvConnector, VllmConfig
from engine.vllm.kv.settings import free_port

_LEAST_LEASE_S = 6
"""The connector renews leases six times while they last, in whole seconds."""


def with_nixl(config: VllmConfig, kv: KvConfig) -> VllmConfig:
    """Return the engine settings with vLLM's connector in them, its side channel at kv.host and kv.port.

    Port 0: a free one. EngineError where the package is missing.
    """
    if importlib.util.find_spec("nixl") is None:
        raise EngineError("--kv-transport nixl needs the package nixl: pip install 'slos-serve[nixl]'")
    port = kv.port or free_port(kv.host)
    environment = {"VLLM_NIXL_SIDE_CHANNEL_HOST": kv.host, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
    extra: dict[str, object] = {"kv_lease_duration": max(_LEAST_LEASE_S, round(kv.lease_s)), "backend": "UCX"}
    connector = KvConnector("NixlConnector", "engine.vllm.kv.nixl", "kv_both", extra, environment, needs_handle=True)
    return replace(config, kv_connector=connector, kv_address=f"{kv.host}:{port}")


def transfer_params(transfer: KvTransferSpec, handle: str) -> dict[str, Any]:
    """What vLLM is told of one half of a hand-over; handle: what the prefill engine said of it, "" when it failed.

    "producer" is for our own step scheduler.
    """
    if transfer.producer:
        return {"producer": True, "do_remote_decode": True, "do_remote_prefill": False}
    if not handle:
        return {"producer": False}
    return {**json.loads(handle), "producer": False}
