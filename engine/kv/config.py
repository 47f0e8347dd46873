"""Settings of the KV exchange and the identity of one end."""

from __future__ import annotations

from dataclasses import dataclass

PROTOCOL_VERSION = 2
BACKENDS = ("auto", "gloo", "nccl", "tcp")


class KvExchangeError(Exception):
    """A KV transfer or a pair cannot go on; the text says why. The decode side then recomputes."""


@dataclass(frozen=True, slots=True)
class KvConfig:
    """Settings of one endpoint; seconds and bytes.

    backend: "auto" takes NCCL for caches on a GPU and Gloo for caches in host memory; "gloo" stages GPU blocks through
    host memory, which is what two processes that share one GPU need; "tcp" moves blocks of caches in host memory
    without a copy (engine.kv.socket_link). message_bytes bounds one data message, so that
    gather, send and scatter of neighbouring messages overlap. checksum proves that what was scattered is what was
    gathered (tests and diagnosis: it reads every byte twice).
    """

    host: str = "127.0.0.1"
    port: int = 0
    backend: str = "auto"
    connect_timeout_s: float = 5.0
    io_timeout_s: float = 3.0
    heartbeat_s: float = 0.3
    lease_s: float = 5.0
    message_bytes: int = 4 << 20
    checksum: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.backend not in BACKENDS:
            raise ValueError(f"KV backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}")
        for name in ("connect_timeout_s", "io_timeout_s", "heartbeat_s", "lease_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.message_bytes < 1:
            raise ValueError(f"message_bytes must be positive, not {self.message_bytes}")
        if self.heartbeat_s * 3 > min(self.io_timeout_s, self.lease_s):
            raise ValueError("heartbeat_s must be at most a third of io_timeout_s and of lease_s")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who an end is; both ends of a pair must agree on everything but worker.

    model names the weights, tp_rank of tp_size is the shard of the KV heads that this process holds.
    """

    worker: str
    model: str
    tp_rank: int = 0
    tp_size: int = 1

    def mismatch(self, peer: dict[str, object]) -> str:
        """Return why a peer with this hello cannot be paired with; empty when it can."""
        if peer.get("protocol") != PROTOCOL_VERSION:
            return f"KV protocol {peer.get('protocol')} instead of {PROTOCOL_VERSION}: update both workers"
        if peer.get("model") != self.model:
            return f"peer serves model {peer.get('model')!r}, this worker {self.model!r}"
        if peer.get("tp_size") != self.tp_size:
            return f"peer has tensor parallelism {peer.get('tp_size')}, this worker {self.tp_size}: they must be equal"
        if peer.get("tp_rank") != self.tp_rank:
            return f"peer is tensor-parallel rank {peer.get('tp_rank')}, this end is rank {self.tp_rank}"
        return ""


@dataclass(frozen=True, slots=True, order=True)
class TransferKey:
    """One attempt to hand over the KV of one request; a higher generation fences off the lower ones."""

    transfer_id: str
    generation: int

    def to_wire(self) -> list[object]:
        """Return the form that control messages carry."""
        return [self.transfer_id, self.generation]

    @staticmethod
    def from_wire(value: object) -> TransferKey:
        """Read the form that control messages carry; KvExchangeError when it is malformed."""
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
            return TransferKey(value[0], value[1])
        raise KvExchangeError(f"malformed transfer key on the wire: {value!r}")
