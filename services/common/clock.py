"""Deadlines across machines: each has its own monotonic clock, so what crosses the wire is the time that remains."""

from __future__ import annotations

MICROSECONDS = 1_000_000


def remaining_us(due_s: float, now_s: float) -> int:
    """Return the microseconds until due_s, negative when it has passed; to be called right before sending."""
    return round((due_s - now_s) * MICROSECONDS)


def due_s(remaining: int, now_s: float, rtt_s: float) -> float:
    """Return on the receiver's clock the time that was `remaining` microseconds away when it was sent.

    Half the round trip has passed on the way.
    """
    return now_s - rtt_s / 2 + remaining / MICROSECONDS
