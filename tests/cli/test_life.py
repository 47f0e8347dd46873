"""A cluster started with slosctl: it serves until told to stop, mends itself, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import state
from cli.errors import Exit
from tests.cluster import START_TIMEOUT_S, Cluster, environment, run_slosctl, start

WAIT_S = 60.0
EMULATED = ["--engine", "emulated", "--port", "0", "--grpc-port", "0"]


def until(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.05)
    return value


def recorded(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / state.FILE).read_text())
    return data


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if state.process_started(pid) is not None]


def listening(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def serving(model_folder: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`slosctl up` in the foreground, with its state folder; killed at the end if a test left it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "up", *EMULATED, "--model", str(model_folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(tmp_path),
    )
    try:
        until(
            lambda: process.poll() is not None or ((tmp_path / state.FILE).exists() and recorded(tmp_path)["ready"]),
            START_TIMEOUT_S,
        )
        assert process.poll() is None, process.communicate(timeout=10)[0]
        yield process, tmp_path
    finally:
        process.kill()
        process.communicate(timeout=10)
        run_slosctl(tmp_path, "down")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_a_signal(serving: tuple[subprocess.Popen[str], Path], number: signal.Signals) -> None:
    process, folder = serving
    record = recorded(folder)
    pids = list(record["children"].values())
    assert sorted(record["children"]) == ["controller", "redis", "worker-0"]
    assert len(alive(pids)) == 3
    assert listening(record["http_address"])
    process.send_signal(number)
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, output
    for phrase in ("starting redis", "starting the controller", "serving after", record["http_address"], "stopped"):
        assert phrase in output
    assert "killed" not in output
    assert alive(pids) == []
    assert not listening(record["http_address"])
    assert not listening(record["grpc_address"])
    assert not (folder / state.FILE).exists()
    assert not (folder / "redis" / "redis.address").exists()


@pytest.mark.timeout(300)
def test_nothing_outlives_a_killed_supervisor(serving: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = serving
    record = recorded(folder)
    process.kill()
    process.wait(10)
    until(lambda: alive(list(record["children"].values())) == [])
    done = run_slosctl(folder, "down")
    assert done.returncode == 0, done.stderr
    assert not (folder / state.FILE).exists()
    assert not (folder / "redis" / "redis.address").exists()


@pytest.fixture
def cluster(model_folder: Path, tmp_path: Path) -> Iterator[Cluster]:
    """An emulated cluster of two replicas for one test alone."""
    running = start(tmp_path, model_folder, "--engine", "emulated", "--replicas", "2")
    try:
        yield running
    finally:
        run_slosctl(tmp_path, "down", timeout_s=90)


@pytest.mark.timeout(300)
def test_what_dies_starts_again(cluster: Cluster) -> None:
    for name in ("worker-1", "controller", "redis"):
        before = recorded(cluster.folder)["children"]
        os.kill(before[name], signal.SIGKILL)
        until(lambda name=name, before=before: recorded(cluster.folder)["children"][name] != before[name])
        until(lambda: _ready(cluster) == {"worker-0", "worker-1"})
        after = recorded(cluster.folder)["children"]
        assert {other for other in before if before[other] != after[other]} == {name}
        until(lambda: _answers(cluster))
    pids = list(recorded(cluster.folder)["children"].values())
    down = run_slosctl(cluster.folder, "down", "--json", timeout_s=90)
    assert (down.returncode, json.loads(down.stdout)) == (0, {"stopped": True})
    assert alive(pids) == []


def test_second_up_is_refused_or_says_so(emulated_cluster: Cluster) -> None:
    again = run_slosctl(emulated_cluster.folder, "up", *EMULATED)
    assert again.returncode == Exit.REFUSED
    assert emulated_cluster.http_address in again.stderr
    detached = run_slosctl(emulated_cluster.folder, "up", "--detach", *EMULATED)
    assert detached.returncode == 0
    assert "already running" in detached.stdout
    where = emulated_cluster.slosctl_json("up", "--detach", *EMULATED)
    assert (where["http_address"], where["ready"]) == (emulated_cluster.http_address, True)


@pytest.mark.timeout(120)
def test_failed_start_says_why_and_leaves_nothing(model_folder: Path, tmp_path: Path) -> None:
    up = ["up", *EMULATED, "--model", str(model_folder), "--controller-option", "--no-such-option"]
    done = run_slosctl(tmp_path, *up, timeout_s=100)
    assert done.returncode == Exit.START_FAILED
    assert "controller ended with exit code 2" in done.stderr
    assert "--no-such-option" in done.stderr
    assert not (tmp_path / state.FILE).exists()
    assert not (tmp_path / "redis" / "redis.address").exists()


@pytest.mark.timeout(120)
def test_detached_start_that_is_ended_takes_itself_back(model_folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "up", "--detach", *EMULATED, "--model", str(model_folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment(tmp_path),
    )
    until(lambda: (tmp_path / state.FILE).exists() and recorded(tmp_path)["children"])
    record = recorded(tmp_path)
    process.terminate()
    assert process.wait(WAIT_S) == Exit.INTERRUPTED
    assert alive([record["pid"], *record["children"].values()]) == []
    assert not (tmp_path / state.FILE).exists()


def _answers(cluster: Cluster) -> bool:
    """Whether a chat is answered; False while the controller has yet to find the new Redis, which it says itself.

    A status asked between the death and the controller's next call still calls Redis well, so it cannot tell.
    """
    done = run_slosctl(cluster.folder, "chat", "--quiet", "--max-tokens", "4", "hello")
    if done.returncode != 0 and "Redis does not answer" in done.stderr:
        return False
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    return True


def _ready(cluster: Cluster) -> set[str]:
    done = run_slosctl(cluster.folder, "status", "--json")
    if done.returncode != 0:
        return set()
    answer = json.loads(done.stdout)
    if not answer["redis_ok"]:
        return set()
    return {item["replica"] for item in answer["replicas"] if item["state"] == "ready"}
