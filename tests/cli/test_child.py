"""A child of the supervisor cannot outlive it, and takes its own children along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cli import state
from cli.cluster.child import Child, ChildSpec

WAIT_S = 20.0
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
PARENT_OF_SLEEP = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    return state.process_started(pid) is None


def test_terminate_and_exit_code(tmp_path: Path) -> None:
    child = Child(ChildSpec("sleeper", SLEEP, tmp_path / "log"))
    until(lambda: "up" in child.last_lines())
    assert child.exit_code() is None
    child.terminate()
    assert child.wait(time.monotonic() + WAIT_S)
    assert child.exit_code() == -signal.SIGTERM


def test_wait_gives_up(tmp_path: Path) -> None:
    child = Child(ChildSpec("sleeper", SLEEP, tmp_path / "log"))
    assert not child.wait(time.monotonic() + 0.2)
    child.kill_group()
    assert child.exit_code() == -signal.SIGKILL


def test_group_dies_with_a_child_that_died_first(tmp_path: Path) -> None:
    child = Child(ChildSpec("parent", [sys.executable, "-c", PARENT_OF_SLEEP], tmp_path / "log"))
    until(child.last_lines)
    grandchild = int(child.last_lines()[0])
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(time.monotonic() + WAIT_S)
    assert not gone(grandchild)
    child.kill_group()
    until(lambda: gone(grandchild))


def test_child_ends_with_a_killed_supervisor(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = (
        "import sys, time; from pathlib import Path; from cli.cluster.child import Child, ChildSpec\n"
        f"child = Child(ChildSpec('sleeper', {SLEEP!r}, Path({str(log)!r})))\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    child = int(supervisor.stdout.readline())
    until(lambda: log.read_text() == "up\n")
    supervisor.kill()
    supervisor.wait(WAIT_S)
    supervisor.stdout.close()
    until(lambda: gone(child))


def test_last_lines_are_those_of_this_run(tmp_path: Path) -> None:
    spec = ChildSpec("speaker", [sys.executable, "-c", "import os; print('I am', os.getpid())"], tmp_path / "log")
    first = Child(spec)
    assert first.wait(time.monotonic() + WAIT_S)
    second = Child(spec)
    assert second.wait(time.monotonic() + WAIT_S)
    assert second.last_lines() == [f"I am {second.pid}"]
    assert second.exit_code() == 0


def test_last_message_is_that_of_the_last_log_record(tmp_path: Path) -> None:
    lines = [
        "2026-11-21T06:01:17+00:00 INFO worker-0 engine.vllm.engine: model loaded after 7.0 s vllm_process_name=M",
        "(EngineCore pid=1) some library's line",
        "2026-11-21T06:01:18+00:00 WARNING worker-0 vllm.platforms: a library's record",
    ]
    child = Child(ChildSpec("speaker", [sys.executable, "-c", f"print({chr(10).join(lines)!r})"], tmp_path / "log"))
    assert child.wait(time.monotonic() + WAIT_S)
    assert child.last_message() == "model loaded after 7.0 s"


def test_child_runs_on_its_cores_alone(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    tell = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
    child = Child(ChildSpec("bound", tell, tmp_path / "log", cores=(core,)))
    assert child.wait(time.monotonic() + WAIT_S)
    assert child.last_lines() == [str({core})]
