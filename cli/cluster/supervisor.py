"""Starts the processes of a plan, watches them, and takes all of them down again, whatever happens to one of them."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cli import state
from cli.cluster.child import Child, ChildSpec
from cli.cluster.plan import Plan
from cli.cluster.redis_probe import answers, stop_left_over
from cli.errors import CliError, Exit
from cli.rpc import Target, connect
from protos.slos.v1 import admin_pb2

TICK_S = 0.2
PROGRESS_EVERY_S = 5.0
GRACE_S = 20.0
"""How long children may take to drain and end before they are killed."""
RESTARTS = 5
RESTART_WINDOW_S = 600.0


class Stopped(Exception):
    """SIGINT or SIGTERM arrived."""


class Supervisor:
    """The cluster's parent process."""

    def __init__(
        self, plan: Plan, say: Callable[[str], None], start_timeout_s: float, serving: Callable[[], None]
    ) -> None:
        """Nothing is started yet; `say` prints one line of progress, `serving` is called once everything serves."""
        self._plan = plan
        self._say = say
        self._start_timeout_s = start_timeout_s
        self._serving = serving
        self._children: dict[str, Child] = {}
        self._starts: dict[str, list[float]] = {}
        self._given_up: set[str] = set()
        self._stop_asked = False
        self._began_s = time.monotonic()

    def run(self) -> None:
        """Start everything, serve until a signal comes, take everything down. CliError when the start fails."""
        with _only_supervisor(), self._signals():
            try:
                self._start()
                self._serving()
                self._serve()
            except Stopped:
                self._say("stopping")
            finally:
                self._take_down()

    def _start(self) -> None:
        self._record(ready=False)
        deadline_s = self._began_s + self._start_timeout_s
        if self._plan.redis is not None:
            stop_left_over(state.state_dir() / "redis")
            self._launch(self._plan.redis)
            self._wait("redis", lambda: answers(self._plan.redis_port), deadline_s)
        self._launch(self._plan.controller)
        for worker in self._plan.workers:
            self._launch(worker)
        self._record(ready=False)
        self._wait("the controller", lambda: self._ready_replicas() is not None, deadline_s)
        wanted = len(self._plan.workers)
        engine = self._plan.options.engine
        self._wait(f"{wanted} {engine} worker(s)", lambda: (self._ready_replicas() or 0) >= wanted, deadline_s)
        self._record(ready=True)

    def _serve(self) -> None:
        """Watch the children and start again what dies."""
        while True:
            self._pause(TICK_S)
            for name, child in list(self._children.items()):
                code = child.exit_code()
                if code is not None and name not in self._given_up:
                    self._revive(child, code)

    def _revive(self, child: Child, code: int) -> None:
        """Start a dead child again; one that keeps dying is left, and ends the cluster if it cannot do without."""
        name = child.spec.name
        child.kill_group()
        self._say(f"{name} ended with {_exit_text(code)}; its last lines:")
        for line in child.last_lines():
            self._say(f"  | {line}")
        now_s = time.monotonic()
        recent = [start for start in self._starts[name] if now_s - start < RESTART_WINDOW_S]
        if child.spec is self._plan.redis:
            stop_left_over(state.state_dir() / "redis")
        if len(recent) <= RESTARTS:
            self._say(f"{name} starts again")
            self._launch(child.spec)
            self._record(ready=True)
            return
        self._given_up.add(name)
        workers = {spec.name for spec in self._plan.workers}
        if name not in workers or workers <= self._given_up:
            raise CliError(f"{name} has ended {len(recent)} times in a row; see {child.spec.log}.")
        self._say(f"{name} has ended {len(recent)} times in a row and is left down; see {child.spec.log}")

    def _launch(self, spec: ChildSpec) -> None:
        self._starts.setdefault(spec.name, []).append(time.monotonic())
        self._children[spec.name] = Child(spec)

    def _wait(self, what: str, done: Callable[[], bool], deadline_s: float) -> None:
        """Wait for a condition; CliError when a child ends before or the time runs out."""
        began_s = time.monotonic()
        said_s = began_s
        self._say(f"starting {what}")
        while not done():
            for child in self._children.values():
                code = child.exit_code()
                if code is not None:
                    lines = "\n".join(f"  | {line}" for line in child.last_lines())
                    raise CliError(
                        f"{child.spec.name} ended with {_exit_text(code)} while starting; its last lines "
                        f"({child.spec.log}):\n{lines}",
                        Exit.START_FAILED,
                    )
            now_s = time.monotonic()
            if now_s > deadline_s:
                logs = state.state_dir() / "log"
                raise CliError(
                    f"{what} did not start within {self._start_timeout_s:.0f} s; the logs are in {logs}.",
                    Exit.START_FAILED,
                )
            if now_s - said_s >= PROGRESS_EVERY_S:
                said_s = now_s
                newest = max(self._children.values(), key=lambda child: child.started_s)
                self._say(
                    f"  waiting for {what} ({now_s - began_s:.0f} s): {newest.spec.name}: {newest.last_message()}"
                )
            self._pause(TICK_S)

    def _ready_replicas(self) -> int | None:
        """Number of ready replicas; None while the controller does not answer."""
        ours = {spec.name for spec in self._plan.workers}
        try:
            with connect(Target(address=self._plan.grpc_address)) as connection:
                answer: admin_pb2.GetStatusResponse = connection.call(
                    connection.admin.GetStatus, admin_pb2.GetStatusRequest(), timeout_s=2.0
                )
        except CliError as error:
            if error.exit_code == Exit.UNREACHABLE:
                return None
            raise
        return sum(replica.state == "ready" and replica.replica in ours for replica in answer.replicas)

    def _take_down(self) -> None:
        """End every child: workers and controller first, so that they can still write to Redis, then Redis."""
        children = list(self._children.values())
        redis = [child for child in children if child.spec is self._plan.redis]
        for group in ([child for child in children if child not in redis], redis):
            for child in group:
                child.terminate()
            deadline_s = time.monotonic() + GRACE_S
            for child in group:
                if not child.wait(deadline_s):
                    self._say(f"{child.spec.name} did not end within {GRACE_S:.0f} s and is killed")
                # Also when it ended by itself: what it had started may be left.
                child.kill_group()
        if self._plan.redis is not None:
            stop_left_over(state.state_dir() / "redis")
        state.forget()

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)
        if self._stop_asked:
            raise Stopped

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into Stopped at the next pause; a second one changes nothing."""

        def ask(_number: int, _frame: FrameType | None) -> None:
            self._stop_asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _record(self, ready: bool) -> None:
        """Write the state file."""
        plan = self._plan
        old = state.load()
        current = state.ClusterState(
            pid=os.getpid(),
            pid_started=state.process_started(os.getpid()) or 0,
            http_address=plan.http_address,
            grpc_address=plan.grpc_address,
            redis_url=plan.redis_url,
            free_cores=list(plan.free_cores),
            engine=plan.options.engine,
            replicas=len(plan.workers),
            policy=plan.options.policy,
            started_unix_s=old.started_unix_s if old and old.pid == os.getpid() else time.time(),
            ready=ready,
            children={name: child.pid for name, child in self._children.items()},
        )
        state.write(current)


@contextmanager
def _only_supervisor() -> Iterator[None]:
    """Hold the state folder's lock, so that two clusters cannot share it."""
    folder = state.state_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cluster.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CliError(
                f"A cluster of this folder ({folder}) is already starting or running; see `slosctl status`, stop it "
                "with `slosctl down`.",
                Exit.REFUSED,
            ) from None
        yield


def _exit_text(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
