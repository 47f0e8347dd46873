"""What slosctl remembers of the cluster it started: one JSON file in the state folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cli.errors import CliError

FILE = "cluster.json"


@dataclass(frozen=True, slots=True)
class ClusterState:
    """A running cluster.

    pid and pid_started identify the supervisor beyond reuse of process ids; children are the process ids of what it
    started, by name. free_cores: cores for what is none of its engines. ready turns true when every worker serves.
    """

    pid: int
    pid_started: int
    http_address: str
    grpc_address: str
    redis_url: str
    engine: str
    replicas: int
    policy: str
    started_unix_s: float
    ready: bool = False
    children: dict[str, int] = field(default_factory=dict)
    free_cores: list[int] = field(default_factory=list)


def state_dir() -> Path:
    """Return the state folder: SLOS_STATE_DIR, else .slos in the current folder."""
    return Path(os.environ.get("SLOS_STATE_DIR") or ".slos").absolute()


def process_started(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command name in parentheses may hold spaces; fields are counted from behind it. A zombie runs no more.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def write(state: ClusterState) -> None:
    """Store the state in one step, so that a reader never sees half a file."""
    folder = state_dir()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(state), indent=2) + "\n")
    temporary.replace(folder / FILE)


def forget() -> None:
    """Remove the file."""
    (state_dir() / FILE).unlink(missing_ok=True)


def load() -> ClusterState | None:
    """Return the last state written; None when there is none."""
    path = state_dir() / FILE
    try:
        return ClusterState(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CliError(f"{path} is not readable ({error}); remove it if no cluster runs here") from error


def running() -> ClusterState | None:
    """Return the state when its supervisor is alive, else None."""
    state = load()
    if state is not None and process_started(state.pid) == state.pid_started:
        return state
    return None
