"""The two words of Redis' protocol that starting and stopping a server needs; keys are none of ours."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

from cli.errors import CliError, Exit

PROBE_TIMEOUT_S = 1.0


def answers(port: int) -> bool:
    """Say whether a server answers on the local port (an error about a missing password is an answer)."""
    return _say(port, b"PING\r\n")[:1] in (b"+", b"-")


def stop_left_over(data_dir: Path, timeout_s: float = 10.0) -> None:
    """End a server of an earlier start that still serves the data folder; two on one folder would destroy it."""
    address_file = data_dir / "redis.address"
    try:
        port = int(address_file.read_text())
    except (OSError, ValueError):
        return
    deadline_s = time.monotonic() + timeout_s
    while str(data_dir) in _say(port, b"CONFIG GET dir\r\n").decode(errors="replace"):
        if time.monotonic() > deadline_s:
            raise CliError(
                f"A Redis server of an earlier start on port {port} still uses {data_dir} and does not end; stop it.",
                Exit.START_FAILED,
            )
        _say(port, b"SHUTDOWN\r\n")
        time.sleep(0.1)
    address_file.unlink(missing_ok=True)


def _say(port: int, command: bytes) -> bytes:
    """Send one inline command and return the start of the answer; empty when there is none."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), PROBE_TIMEOUT_S) as connection:
        connection.sendall(command)
        return connection.recv(4096)
    return b""
