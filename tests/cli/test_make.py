"""`make up` as a person uses it: it serves, and Ctrl-C in the terminal takes everything down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cli import state
from tests.cluster import START_TIMEOUT_S, environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_make_up_serves_until_ctrl_c(model_folder: Path, tmp_path: Path) -> None:
    assert shutil.which("make"), "make is not installed"
    # Setup has been done by whatever runs this test; `make up` itself starts with it.
    process = subprocess.Popen(
        ["make", "-o", "setup", "up", f"VENV={sys.prefix}", "ARGS=--engine emulated --port 0 --grpc-port 0"],
        cwd=ROOT,
        env={**environment(tmp_path), "SLOS_MODEL_DIR": str(model_folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    record: dict[str, object] = {}
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not record.get("ready"):
            assert process.poll() is None, process.communicate(timeout=10)[0]
            assert time.monotonic() < deadline_s, "make up did not serve in time"
            time.sleep(0.1)
            if (tmp_path / state.FILE).exists():
                record = json.loads((tmp_path / state.FILE).read_text())
        with urllib.request.urlopen(f"http://{record['http_address']}/ready", timeout=10) as answer:
            assert answer.status == 200
        # The terminal sends Ctrl-C to make and to everything in its foreground group.
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=10)
    assert f"http://{record['http_address']}/v1" in output
    # What make adds depends on who called it, and on which of the two saw the signal first.
    said = [line for line in output.splitlines() if line and not line.startswith("make")]
    assert said[-1] == "up: stopped", output
    children = record["children"]
    assert isinstance(children, dict)
    assert [pid for pid in children.values() if state.process_started(pid) is not None] == []
