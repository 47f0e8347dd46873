"""Options of a worker; each also comes from the environment: --model-path from SLOS_MODEL_PATH, and so on."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import uvloop

from engine.kv.config import BACKENDS, KvConfig
from scheduling.registry import DEFAULT_POLICY
from services.common.security import SecuritySettings
from services.common.settings import CONTEXT, LogSettings, logging_options, security_options, store_options
from services.common.store import StoreSettings
from services.worker_host.engines import EngineOptions
from services.worker_host.host import HostSettings
from services.worker_host.kv_options import KvOptions
from services.worker_host.process import WorkerSettings, run
from services.worker_host.wire import ROLES

_KV = KvConfig()
_SECONDS = click.FloatRange(min=0.0, min_open=True)
_COUNT = click.IntRange(min=1)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _cores(_: click.Context, option: click.Parameter, value: str) -> str:
    """Check a list of cores; click's own error names the option."""
    if value and not re.fullmatch(r"\d+(-\d+)?([,|]\d+(-\d+)?)*", value):
        raise click.BadParameter(f"give cores such as 0,1 or 0-3, not {value!r}", param=option)
    return value


_OPTIONS = [
    click.option("--worker-id", default="", help="unique name; by default host name and port"),
    click.option("--host", default="127.0.0.1", help="address to listen on"),
    click.option("--port", default=0, type=click.IntRange(0, 65535), help="port of the worker API; 0 for any"),
    click.option("--advertise", default="", help="host name under which controllers reach this worker"),
    click.option("--metrics-port", type=click.IntRange(0, 65535), help="serve Prometheus metrics there; 0 for any"),
    click.option("--lease-s", default=5.0, type=_SECONDS, help="a silent worker counts as lost after this time"),
    click.option("--drain-s", default=30.0, type=_SECONDS, help="time for running requests after SIGTERM"),
    click.option("--orphan-s", default=60.0, type=_SECONDS, help="time that requests go on without a controller"),
    click.option("--silence-s", default=10.0, type=_SECONDS, help="a silent controller counts as gone after this time"),
    click.option("--kept-events", default=20_000, type=_COUNT, help="unacknowledged events kept for the controller"),
    click.option(
        "--refit-drift",
        default=0.1,
        type=click.FloatRange(min=0.0),
        help="fit the time model again once the median step is off by this share; 0: never",
    ),
    click.option("--profile-anew", is_flag=True, help="fit the time model even when Redis has one"),
    click.option("--profile-quick", is_flag=True, help="fit it from fewer batches"),
    click.option("--engine", default="vllm", type=click.Choice(["vllm", "emulated"])),
    click.option("--model-path", type=_FOLDER, help="model folder; an emulated engine takes its vocabulary"),
    click.option("--model-name", default="", help="name that requests use; by default the folder's"),
    click.option("--policy", default=DEFAULT_POLICY, help="batch policy to begin with"),
    click.option("--hardware", default="", help="name of the hardware, for the key of the time model"),
    click.option("--seed", default=0),
    click.option("--max-model-len", type=_COUNT, help="window: prompt plus output, tokens"),
    click.option("--max-batch-tokens", type=_COUNT, help="most tokens in one step"),
    click.option("--max-batch-requests", type=_COUNT, help="most requests in one step"),
    click.option("--kv-blocks", type=_COUNT, help="KV blocks, in place of what the memory gives"),
    click.option("--spec-tokens", default=0, type=click.IntRange(0, 16), help="tokens drafted per step and request"),
    click.option("--prefix-caching/--no-prefix-caching", default=True),
    click.option("--dtype", type=click.Choice(["auto", "float16", "bfloat16", "float32"]), help="vLLM only"),
    click.option("--cpu-cores", default="", callback=_cores, help="vLLM on CPUs only: cores of the model, such as 0-3"),
    click.option("--other-cores", default="", callback=_cores, help="vLLM on CPUs only: cores of everything else"),
    click.option("--kv-cache-gib", type=_COUNT, help="vLLM on CPUs only: memory for the KV cache, GiB"),
    click.option("--gpu-memory-utilization", type=click.FloatRange(0.05, 1.0), help="vLLM on GPUs only"),
    click.option("--tensor-parallel-size", type=_COUNT, help="vLLM only"),
    click.option("--enforce-eager/--no-enforce-eager", default=None, help="vLLM only: no compiled graphs"),
    click.option("--kv-exchange/--no-kv-exchange", default=None, help="by default for --role prefill and decode"),
    click.option(
        "--kv-transport",
        default="torch",
        type=click.Choice(["torch", "nixl"]),
        help="nixl: vLLM only, for RDMA fabrics; needs the package nixl",
    ),
    click.option("--kv-host", default="", help="address for KV from other workers; by default that of --host"),
    click.option("--kv-port", default=0, type=click.IntRange(0, 65535), help="0 for any"),
    click.option(
        "--kv-backend",
        default="auto",
        type=click.Choice(BACKENDS),
        help="auto: nccl on GPUs, else gloo; tcp: caches in host memory, without copies",
    ),
    click.option("--kv-connect-timeout-s", default=_KV.connect_timeout_s, type=_SECONDS),
    click.option("--kv-io-timeout-s", default=_KV.io_timeout_s, type=_SECONDS, help="a silent peer is gone after this"),
    click.option("--kv-heartbeat-s", default=_KV.heartbeat_s, type=_SECONDS),
    click.option(
        "--kv-lease-s", default=_KV.lease_s, type=_SECONDS, help="blocks wait this long unless a controller says"
    ),
    click.option("--kv-message-bytes", default=_KV.message_bytes, type=_COUNT, help="most bytes of one KV message"),
    click.option("--kv-checksum", is_flag=True, help="prove that what arrives is what was sent; slower"),
    click.option("--kv-block-bytes", default=256, type=_COUNT, help="emulated only: bytes of one KV block"),
    click.option("--time-model", type=_FILE, help="emulated only: JSON file with the step times"),
    click.option("--time-scale", default=1.0, type=_SECONDS, help="emulated only: multiplies every duration"),
    click.option("--time-noise", default=0.0, type=click.FloatRange(min=0), help="emulated only: relative deviation"),
    click.option("--accept-rate", default=0.7, type=click.FloatRange(0, 1, max_open=True), help="emulated only"),
    click.option("--output-mean", type=click.FloatRange(min=1), help="emulated only: mean output length, tokens"),
]


def command(default_role: str, program: str) -> click.Command:
    """Return the command line of a worker with this role by default."""

    @click.command(name=program, context_settings=CONTEXT)
    @click.option("--role", default=default_role, type=click.Choice(ROLES), help="both: prefill and decode together")
    @_worker_options
    @store_options
    @security_options
    @logging_options
    def worker(**options: Any) -> None:
        """Serve one engine to the controller until a signal comes.

        Exit code: 0 after SIGTERM or SIGINT, 1 when the engine fails, 2 for wrong options.
        """
        logs: LogSettings = options.pop("logs")
        settings = _settings(**options)
        logs.apply(settings.worker_id or program)
        # vLLM wants the standard event loop policy to stay as it is in its other processes.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.exit(runner.run(run(settings)))

    return worker


def _worker_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def _settings(store: StoreSettings, security: SecuritySettings, **options: Any) -> WorkerSettings:
    """Sort the options into the settings they belong to."""
    engine = EngineOptions(**{field.name: options.pop(field.name) for field in fields(EngineOptions)})
    limits = HostSettings(**{field.name: options.pop(field.name) for field in fields(HostSettings)})
    kv = KvOptions(**{field.name: options.pop(field.name) for field in fields(KvOptions)})
    return WorkerSettings(engine=engine, kv=kv, limits=limits, store=store, security=security, **options)
