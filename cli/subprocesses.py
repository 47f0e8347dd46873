"""Other programs of the project, run as `python -m MODULE` with this terminal."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from cli.errors import CliError, Exit


def exists(module: str) -> bool:
    """Say whether a module can be run."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def run_module(module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a module to its end and return its exit code; Ctrl-C and SIGTERM go to it, and this waits until it has ended.

    Call it from the main thread.
    """
    if not exists(module):
        raise CliError(f"This installation has no {module}; run slosctl from a full checkout.", Exit.NOT_FOUND)
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], env={**os.environ, **(environment or {})})
    before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                # The terminal has sent the child the same signal; it ends by itself.
                continue
    finally:
        signal.signal(signal.SIGTERM, before)
    return int(Exit.INTERRUPTED) if code in (-signal.SIGINT, 130) else abs(code)
