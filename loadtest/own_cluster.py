"""A cluster for one purpose (a demo, a benchmark): brought up on free ports, with state of its own, and taken down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 120.0
_LOG_LINES = 15


class ClusterFailed(Exception):
    """The cluster did not start; the text says why."""


@dataclass(frozen=True, slots=True)
class OwnCluster:
    """Where a running cluster listens: host:port each; folder holds its state and logs."""

    http_address: str
    grpc_address: str
    folder: Path

    @property
    def url(self) -> str:
        """Base URL of the HTTP API."""
        return f"http://{self.http_address}"


def model_folder() -> Path:
    """Folder of the model that `make setup` made; SLOS_MODEL_DIR names another. ClusterFailed when there is none."""
    folder = Path(os.environ.get("SLOS_MODEL_DIR") or ".slos/models/smollm2-135m-instruct").absolute()
    if not (folder / "config.json").is_file():
        raise ClusterFailed(f"there is no model in {folder}; run `make setup`, or set SLOS_MODEL_DIR")
    return folder


@contextmanager
def own_cluster(folder: Path, arguments: Sequence[str] = (), model: Path | None = None) -> Iterator[OwnCluster]:
    """Start a cluster as `slosctl up` does with these arguments, and stop it at the end, whatever happens.

    What `slosctl` says goes to standard error. folder is kept, with the logs and what Redis had stored. Call it in the
    main thread: it takes SIGTERM while the cluster is up. So long, the caller and what it starts run on the cores that
    the engines leave free, because a client on an engine's core would be part of what is measured.
    """
    up = ["up", "--detach", "--port", "0", "--grpc-port", "0", "--model", str(model or model_folder()), *arguments]
    folder.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, _exit)
    cores = os.sched_getaffinity(0)
    try:
        if _slosctl(folder, up, _START_TIMEOUT_S) != 0:
            raise ClusterFailed(f"the cluster did not start; its logs are in {folder / 'log'}\n{_last_lines(folder)}")
        state = json.loads((folder / "cluster.json").read_text())
        os.sched_setaffinity(0, state["free_cores"])
        yield OwnCluster(state["http_address"], state["grpc_address"], folder)
    finally:
        os.sched_setaffinity(0, cores)
        _slosctl(folder, ["down"], _STOP_TIMEOUT_S)
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, _: object) -> None:
    """SIGTERM ends Python at once, and would leave the cluster running; this way it is taken down first."""
    raise SystemExit(128 + number)


def _slosctl(folder: Path, arguments: list[str], timeout_s: float) -> int:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLOS_")}
    try:
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            env={**inherited, "SLOS_STATE_DIR": str(folder.absolute())},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            timeout=timeout_s,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"slosctl {arguments[0]} took more than {timeout_s:.0f} s", file=sys.stderr)
        return 1


def _last_lines(folder: Path) -> str:
    parts = []
    for log in sorted((folder / "log").glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        parts += [f"--- {log.name}", *lines]
    return "\n".join(parts)
