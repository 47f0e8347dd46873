"""One child process of the supervisor: started so that it cannot outlive us, stopped with everything below it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

PR_SET_PDEATHSIG = 1
PROBE_S = 0.05

_RECORD = re.compile(
    r"\S+ (INFO|WARNING|ERROR) \S+ (services|engine)\.[\w.]+: (?P<text>.*?)( vllm_process_name=\S+.*)?$"
)
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run. log: file that takes standard output and error; cores: where it may run, all if empty."""

    name: str
    argv: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()


class Child:
    """A running child with a process group of its own."""

    def __init__(self, spec: ChildSpec) -> None:
        """Start it."""
        self.spec = spec
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        with spec.log.open("ab") as output:
            self.log_start = output.tell()
            # A group of its own: Ctrl-C reaches the supervisor alone, which then stops the children in order.
            self._process = subprocess.Popen(
                list(spec.argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **spec.environment},
                start_new_session=True,
                preexec_fn=partial(_prepare, spec.cores),
            )
        self.started_s = time.monotonic()

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Exit code, or None while it runs; negative for a signal."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self, deadline_s: float) -> bool:
        """Wait until time.monotonic() passes the deadline; True when it has ended."""
        while self._process.poll() is None:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(PROBE_S)
        return True

    def kill_group(self) -> None:
        """End it and everything it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def last_lines(self, count: int = 8) -> list[str]:
        """Last lines that this run of the child wrote."""
        with self.spec.log.open("rb") as log:
            log.seek(self.log_start)
            return log.read().decode(errors="replace").rstrip().splitlines()[-count:]

    def last_message(self) -> str:
        """Text of the last log record that this run wrote, without time and origin; empty when there is none."""
        for line in reversed(self.last_lines(30)):
            found = _RECORD.match(line)
            if found:
                return found["text"].strip()
        return ""


def _prepare(cores: tuple[int, ...]) -> None:
    """Runs in the child before exec: the kernel sends SIGTERM when the supervisor dies, however it dies."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if cores:
        os.sched_setaffinity(0, cores)
