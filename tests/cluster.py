"""A cluster of its own for tests, started and stopped the way a person does it: with slosctl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster: addresses are host:port, model is the name that requests use."""

    folder: Path
    http_address: str
    grpc_address: str
    redis_url: str
    model: str

    @property
    def url(self) -> str:
        """Base of the OpenAI-compatible API, without /v1."""
        return f"http://{self.http_address}"

    def slosctl(self, *arguments: str, input: str | None = None, timeout_s: float = 60.0) -> str:  # noqa: A002
        """Run slosctl against this cluster and return its standard output; AssertionError unless it exits with 0."""
        done = run_slosctl(self.folder, *arguments, input=input, timeout_s=timeout_s)
        assert done.returncode == 0, f"slosctl {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def slosctl_json(self, *arguments: str) -> Any:
        """Run slosctl with --json and return the data."""
        return json.loads(self.slosctl(*arguments, "--json"))


def environment(folder: Path) -> dict[str, str]:
    """Environment of a process that belongs to the cluster of this state folder and to no other."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLOS_")}
    return {**inherited, "SLOS_STATE_DIR": str(folder)}


def run_slosctl(
    folder: Path,
    *arguments: str,
    input: str | None = None,  # noqa: A002
    timeout_s: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run slosctl with a state folder and return what it did."""
    stdin = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        **stdin,  # type: ignore[call-overload]
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=environment(folder),
    )


def start(folder: Path, model: Path, *arguments: str) -> Cluster:
    """Start a cluster on free ports; the caller stops it."""
    up = ["up", "--detach", "--model", str(model), "--port", "0", "--grpc-port", "0", *arguments]
    try:
        done = run_slosctl(folder, *up, timeout_s=START_TIMEOUT_S + 60)
    except BaseException:
        # A test's own timeout kills slosctl, which then cannot take back what it has begun.
        run_slosctl(folder, "down", timeout_s=90)
        raise
    assert done.returncode == 0, f"the cluster did not start\n{done.stdout}\n{done.stderr}"
    state = json.loads((folder / "cluster.json").read_text())
    return Cluster(folder, state["http_address"], state["grpc_address"], state["redis_url"], model.name)


def stop(cluster: Cluster) -> None:
    """Stop it; AssertionError when something is left."""
    done = run_slosctl(cluster.folder, "down", timeout_s=90)
    assert done.returncode == 0, done.stderr
