"""Starts the controller: python -m services.controller --model NAME=FOLDER."""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path

import click
import uvloop

from scheduling.registry import DEFAULT_POLICY, POLICIES
from services.common.security import SecurityError, SecuritySettings
from services.common.settings import CONTEXT, LogSettings, logging_options, security_options, store_options
from services.common.store import StoreSettings
from services.controller.admission import AdmissionSettings
from services.controller.core import CoreSettings
from services.controller.link import LinkTimes
from services.controller.process import ControllerFailed, default_controller_id, serve
from services.controller.replicas import ReplicaSettings
from services.controller.servers import ListenError
from services.controller.settings import ControllerSettings
from services.controller.tokenizer import ModelFolderError, Thinking


def _models(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for value in values:
        name, _separator, folder = value.partition("=")
        if not name or not folder:
            raise click.BadParameter(f"{value!r}: write NAME=FOLDER, for example smollm2-135m-instruct=./model")
        if name in models:
            raise click.BadParameter(f"model {name!r} is given twice; give each its own name")
        models[name] = Path(folder)
    return models


@click.command(context_settings={**CONTEXT, "auto_envvar_prefix": "SLOS"})
@click.option("--model", "models", multiple=True, required=True, callback=_models, help="NAME=FOLDER, may be repeated")
@click.option("--host", default="127.0.0.1", help="address to listen on")
@click.option("--http-port", default=8000, help="port of the OpenAI-compatible API; 0: any free one")
@click.option("--grpc-port", default=9000, help="port of the client and admin APIs; 0: any free one")
@click.option("--address-file", default="", help="write the addresses there, as JSON, once they are known")
@click.option("--policy", default=DEFAULT_POLICY, type=click.Choice(list(POLICIES)), help="scheduling policy")
@click.option("--routing", default="", help="routing policy in place of the policy's own")
@click.option("--api-keys", default="", help="file with lines `tenant key`; without it every client is let in")
@click.option("--best-effort-queue", default=1024, type=click.IntRange(0), help="requests that may wait unpromised")
@click.option("--attempts", default=3, type=click.IntRange(1), help="workers that may be lost under one request")
@click.option("--stream-grace-s", default=1.0, help="how long a broken worker stream may take to come back")
@click.option("--failover-wait-s", default=30.0, help="how long a request waits for any replica to come back")
@click.option("--drain-s", default=30.0, help="how long running requests may take after SIGTERM")
@click.option("--leader-ttl-s", default=3.0, help="how long the leader lock outlives a leader that died")
@click.option("--thinking-start", default="<think>", help="text that begins a thinking stage")
@click.option("--thinking-end", default="</think>", help="text of the one token that ends it")
@click.option("--thinking", type=click.Choice(["prompt", "always", "never"]), default="prompt", help="who begins it")
@store_options
@security_options
@logging_options
def main(
    models: dict[str, Path],
    host: str,
    http_port: int,
    grpc_port: int,
    address_file: str,
    policy: str,
    routing: str,
    api_keys: str,
    best_effort_queue: int,
    attempts: int,
    stream_grace_s: float,
    failover_wait_s: float,
    drain_s: float,
    leader_ttl_s: float,
    thinking_start: str,
    thinking_end: str,
    thinking: str,
    store: StoreSettings,
    security: SecuritySettings,
    logs: LogSettings,
) -> None:
    """Serve models under SLOs: HTTP and gRPC in front, workers from the registry behind."""
    logs.apply("controller")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    settings = ControllerSettings(
        models=models,
        controller_id=default_controller_id(socket.gethostname(), os.getpid()),
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        address_file=address_file,
        policy=policy,
        routing=routing,
        api_keys=api_keys,
        drain_s=drain_s,
        leader_ttl_s=leader_ttl_s,
        thinking=Thinking(thinking_start, thinking_end, thinking),  # type: ignore[arg-type]
        core=CoreSettings(
            best_effort_queue=best_effort_queue,
            attempts=attempts,
            admission=AdmissionSettings(failover_wait_s=failover_wait_s),
            replicas=ReplicaSettings(stream_grace_s=stream_grace_s, link=LinkTimes()),
        ),
        store=store,
        security=security,
        logs=logs,
    )
    try:
        uvloop.run(serve(settings))
    except ControllerFailed as error:
        sys.exit(f"The controller failed: {error}")
    except (ListenError, ModelFolderError, SecurityError, ValueError) as error:
        sys.exit(f"The controller cannot start: {error}")


if __name__ == "__main__":
    main()
