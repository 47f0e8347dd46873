"""What an engine is started with to exchange KV."""

from __future__ import annotations

import socket
from dataclasses import replace

from engine.kv.config import KvConfig
from engine.vllm.config import KvConnector, VllmConfig


def with_kv_exchange(config: VllmConfig, worker: str, kv: KvConfig) -> VllmConfig:
    """Return the engine settings with our connector in them, listening at kv.host and kv.port (0: a free port).

    With tensor parallelism, rank r listens at kv.port + r.
    """
    port = kv.port or free_port(kv.host)
    extra: dict[str, object] = {
        "worker": worker,
        "model": config.model_dir.name,
        "host": kv.host,
        "port": port,
        "backend": kv.backend,
        "connect_timeout_s": kv.connect_timeout_s,
        "io_timeout_s": kv.io_timeout_s,
        "heartbeat_s": kv.heartbeat_s,
        "lease_s": kv.lease_s,
        "message_bytes": kv.message_bytes,
        "checksum": kv.checksum,
    }
    connector = KvConnector("KvExchangeConnector", "engine.vllm.kv.connector", "kv_both", extra)
    return replace(config, kv_connector=connector, kv_address=f"{kv.host}:{port}")


def rank_address(address: str, tp_rank: int) -> str:
    """Return where the given tensor-parallel rank of a peer listens; address is that of its rank 0."""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + tp_rank}" if port.isdigit() else address


def read_extra(extra: dict[str, object], tp_rank: int) -> KvConfig:
    """Read KvConfig back from kv_connector_extra_config, for one tensor-parallel rank."""
    fields = {name: extra[name] for name in KvConfig.__dataclass_fields__ if name in extra}
    fields["port"] = int(str(extra.get("port", 0))) + tp_rank if extra.get("port") else 0
    return KvConfig(**fields)  # type: ignore[arg-type]


def free_port(host: str) -> int:
    """Return a TCP port that nobody uses right now."""
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])
