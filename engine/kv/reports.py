"""What an endpoint tells its engine: transfers that ended, and counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.kv.config import TransferKey


@dataclass(slots=True)
class Ended:
    """Transfers that ended since the last poll; a reason says why one failed. Their blocks are no longer touched."""

    sent: list[TransferKey] = field(default_factory=list)
    send_failed: dict[TransferKey, str] = field(default_factory=dict)
    received: list[TransferKey] = field(default_factory=list)
    receive_failed: dict[TransferKey, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KvStats:
    """Counts since start, for metrics and leak checks."""

    outgoing: int
    incoming: int
    pairs: int
    bytes_sent: int
    bytes_received: int
