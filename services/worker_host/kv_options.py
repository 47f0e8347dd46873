"""How a worker exchanges KV with others, from its options."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from engine.kv.config import KvConfig
from engine.protocol import EngineError

_WILDCARDS = ("", "0.0.0.0", "[::]", "::")
_DEFAULT = KvConfig()


@dataclass(frozen=True, slots=True)
class KvOptions:
    """Settings of the KV exchange; seconds and bytes, as in engine.kv.config.KvConfig.

    kv_transport: "torch" (engine.kv, over torch.distributed) or "nixl" (vLLM's own connector). kv_exchange: None opens
    it for a worker that has one role only. A worker that may be given another role at run time needs it from the start.
    kv_host: the address to listen on, which must be one that the other workers reach; by default the worker's own.
    kv_block_bytes: size of an emulated engine's blocks.
    """

    kv_transport: str = "torch"
    kv_exchange: bool | None = None
    kv_host: str = ""
    kv_port: int = 0
    kv_backend: str = "auto"
    kv_connect_timeout_s: float = _DEFAULT.connect_timeout_s
    kv_io_timeout_s: float = _DEFAULT.io_timeout_s
    kv_heartbeat_s: float = _DEFAULT.heartbeat_s
    kv_lease_s: float = _DEFAULT.lease_s
    kv_message_bytes: int = _DEFAULT.message_bytes
    kv_checksum: bool = False
    kv_block_bytes: int = 256

    def config(self, role: str, host: str, advertise: str) -> KvConfig | None:
        """Return the settings of the endpoint, None for a worker without one; EngineError says what is wrong.

        host and advertise: the address that the worker API listens on, and the name under which it is reached.
        """
        exchange = self.kv_exchange if self.kv_exchange is not None else role != "both"
        if not exchange:
            return None
        try:
            return KvConfig(
                host=self.kv_host or _reachable(host, advertise),
                port=self.kv_port,
                backend=self.kv_backend,
                connect_timeout_s=self.kv_connect_timeout_s,
                io_timeout_s=self.kv_io_timeout_s,
                heartbeat_s=self.kv_heartbeat_s,
                lease_s=self.kv_lease_s,
                message_bytes=self.kv_message_bytes,
                checksum=self.kv_checksum,
            )
        except ValueError as error:
            raise EngineError(f"The KV exchange cannot be set up: {error}") from error


def _reachable(host: str, advertise: str) -> str:
    """Return an address of this host that others reach and that can be listened on."""
    if host not in _WILDCARDS:
        return host
    name = advertise or socket.gethostname()
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        raise EngineError(
            f"{name!r} has no address, so no other worker could fetch KV here ({error}); give --kv-host"
        ) from error
