"""Starts a decode worker; see services.worker_host."""

from __future__ import annotations

from services.worker_host.command_line import command

if __name__ == "__main__":
    command("decode", "decode-worker")()
