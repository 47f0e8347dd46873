"""What a cluster on this machine consists of: the options of `slosctl up` turned into processes."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cli import state
from cli.cluster.child import ChildSpec
from cli.errors import CliError, Exit

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `slosctl up`.

    redis_url empty: a Redis of our own with its data in the state folder. model: folder of the model.
    roles: one worker per entry. worker_arguments go to every worker as they are.
    """

    engine: str
    roles: tuple[str, ...]
    policy: str
    host: str
    http_port: int
    grpc_port: int
    redis_url: str
    model: Path
    worker_arguments: tuple[str, ...] = ()
    controller_arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Processes in the order of their start, and the addresses they get.

    free_cores: those that no engine has to itself; all of the machine where engines need them all or do not compute.
    """

    redis: ChildSpec | None
    controller: ChildSpec
    workers: tuple[ChildSpec, ...]
    redis_url: str
    redis_port: int
    http_address: str
    grpc_address: str
    free_cores: tuple[int, ...]
    options: Options = field(repr=False)

    @property
    def children(self) -> tuple[ChildSpec, ...]:
        """All of them."""
        first = (self.redis,) if self.redis else ()
        return (*first, self.controller, *self.workers)


def make_plan(options: Options) -> Plan:
    """Choose ports and cores and write the command lines; CliError when a port is taken."""
    folder = state.state_dir()
    logs = folder / "log"
    http_port = _port(options.host, options.http_port, "--port")
    grpc_port = _port(options.host, options.grpc_port, "--grpc-port")
    redis_port = 0 if options.redis_url else free_port()
    redis_url = options.redis_url or f"redis://127.0.0.1:{redis_port}/0"
    usable = sorted(os.sched_getaffinity(0))
    cores = cores_for(len(options.roles), usable)
    taken = {core for own in cores for core in own} if options.engine == "vllm" else set()
    free = tuple(core for core in usable if core not in taken) or tuple(usable)
    others = ",".join(map(str, free)) if 0 < len(taken) < len(usable) else ""
    redis = None
    if not options.redis_url:
        arguments = ["--data-dir", str(folder / "redis"), "--port", str(redis_port)]
        redis = ChildSpec("redis", _module("services.common.embedded_redis", arguments), logs / "redis.log", cores=free)
    common = ["--redis-url", redis_url, "--host", options.host]
    controller = ChildSpec(
        "controller",
        _module(
            "services.controller",
            [
                *common,
                *("--model", f"{options.model.name}={options.model}"),
                *("--http-port", str(http_port)),
                *("--grpc-port", str(grpc_port)),
                *("--policy", options.policy),
                *options.controller_arguments,
            ],
        ),
        logs / "controller.log",
        cores=free,
    )
    workers = tuple(
        _worker(options, index, role, common, cores[index], others, logs) for index, role in enumerate(options.roles)
    )
    shown = "localhost" if options.host in ("127.0.0.1", "0.0.0.0") else options.host
    return Plan(
        redis=redis,
        controller=controller,
        workers=workers,
        redis_url=redis_url,
        redis_port=redis_port,
        http_address=f"{shown}:{http_port}",
        grpc_address=f"{shown}:{grpc_port}",
        free_cores=free,
        options=options,
    )


def roles_of(topology: str, replicas: int | None, prefill: int | None, decode: int | None) -> tuple[str, ...]:
    """Return the role of each worker; None stands for an option that was not given. CliError when they do not agree."""
    if topology == "disaggregated":
        return ("prefill",) * (prefill or 1) + ("decode",) * (decode or 1) + ("both",) * (replicas or 0)
    if prefill or decode:
        raise CliError("--prefill and --decode need --topology disaggregated.", Exit.USAGE)
    if replicas == 0:
        raise CliError("A cluster needs at least one worker: --replicas must be at least 1.", Exit.USAGE)
    return ("both",) * (replicas or 1)


def cores_for(engines: int, cores: list[int]) -> list[list[int]]:
    """Split the machine's cores among engines, no core to two of them while there are enough.

    One core is left to the controller and the clients where the engines do not need them all. With more engines than
    cores, engines share.
    """
    if engines >= len(cores):
        return [[cores[index % len(cores)]] for index in range(engines)]
    usable = cores[1:]
    each = len(usable) // engines
    return [usable[index * each : (index + 1) * each] for index in range(engines)]


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _worker(
    options: Options, index: int, role: str, common: list[str], cores: list[int], others: str, logs: Path
) -> ChildSpec:
    name = f"worker-{index}" if role == "both" else f"{role}-{index}"
    module = "services.prefill_worker" if role == "prefill" else "services.decode_worker"
    arguments = [
        *common,
        *("--worker-id", name),
        *("--role", role),
        *("--engine", options.engine),
        *("--model-path", str(options.model)),
        *("--policy", options.policy),
    ]
    if set(options.roles) != {"both"}:
        # Co-located workers beside pairs too, so that any of them may be given another role.
        arguments.append("--kv-exchange")
    arguments += options.worker_arguments
    if options.engine == "vllm":
        arguments += ["--cpu-cores", ",".join(str(core) for core in cores)]
    if others:
        arguments += ["--other-cores", others]
    return ChildSpec(name, _module(module, arguments), logs / f"{name}.log")


def _module(module: str, arguments: list[str]) -> list[str]:
    return [sys.executable, "-u", "-m", module, *arguments]


def _port(host: str, port: int, option: str) -> int:
    """Return the port if it is free (0: any free one)."""
    if port == 0:
        return free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CliError(
                f"Cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}); choose another with {option}.",
                Exit.START_FAILED,
            ) from error
    return port
