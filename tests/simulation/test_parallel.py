"""Jobs in other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
import os, sys, time
from pathlib import Path
from simulation.parallel import run_all

def work(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    run_all(work, [sys.argv[1]] * 2, "jobs", str, processes=2, quiet=True)
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_with_the_process_that_wanted_their_results(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    started = tmp_path / "started"
    started.mkdir()
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen([sys.executable, tmp_path / "script.py", started], env={**os.environ, "PYTHONPATH": root})
    try:
        deadline = time.monotonic() + 60
        while len(list(started.iterdir())) < 2:
            assert time.monotonic() < deadline, "the workers did not start"
            assert parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    workers = [int(path.name) for path in started.iterdir()]
    deadline = time.monotonic() + 20
    while any(map(runs, workers)):
        assert time.monotonic() < deadline, "workers outlive the process that wanted their results"
        time.sleep(0.1)
