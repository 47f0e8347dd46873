"""Bounds of the HTTP front door."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """max_body_bytes: largest body taken. body_timeout_s: how long a client may take to send it.

    request_timeout_s: longest time from body to end of answer, queueing included. keep_alive_s: a stream that has
    nothing to say for so long sends a comment, so that proxies do not take it for dead. owner: "owned_by" of models.
    """

    max_body_bytes: int = 16 * 1024 * 1024
    body_timeout_s: float = 30.0
    request_timeout_s: float = 3600.0
    keep_alive_s: float = 15.0
    owner: str = "slos-serve"
