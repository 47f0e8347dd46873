"""Programs that slosctl runs end with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

WAIT_S = 20.0


def test_a_program_is_told_to_end_with_the_command_that_runs_it() -> None:
    script = "from cli.subprocesses import run_module; raise SystemExit(run_module('http.server', ['0']))"
    command = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
        deadline = time.monotonic() + WAIT_S
        while not (started := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.02)
        (program,) = started
        while "http.server" not in Path(f"/proc/{program}/cmdline").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        command.send_signal(signal.SIGTERM)
        assert command.wait(WAIT_S) == signal.SIGTERM
        assert not Path(f"/proc/{program}").exists()
    finally:
        command.kill()
