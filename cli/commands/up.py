"""slosctl up: a cluster on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from cli import state
from cli.cluster.plan import DEFAULT_MODEL, Options, make_plan, roles_of
from cli.cluster.supervisor import GRACE_S, Supervisor
from cli.errors import CliError, Exit
from cli.output import json_option, print_json
from cli.subprocesses import run_module
from scheduling import registry

POLL_S = 0.1


@click.command()
@click.option("--engine", type=click.Choice(["vllm", "emulated"]), default="vllm", show_default=True)
@click.option("--topology", type=click.Choice(["colocated", "disaggregated"]), default="colocated", show_default=True)
@click.option(
    "--replicas",
    type=click.IntRange(0, 64),
    help="Co-located workers to start; 1 by default, none beside prefill and decode workers.",
)
@click.option("--prefill", type=click.IntRange(1, 64), help="Prefill workers of a disaggregated cluster; 1 by default.")
@click.option("--decode", type=click.IntRange(1, 64), help="Decode workers of a disaggregated cluster; 1 by default.")
@click.option("--policy", type=click.Choice(registry.names()), default=registry.DEFAULT_POLICY, show_default=True)
@click.option(
    "--model",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="SLOS_MODEL_DIR",
    show_envvar=True,
    help="Model folder.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="HTTP port; 0: any.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=9000, show_default=True, help="0: any.")
@click.option("--redis-url", default="", help="Use this Redis; otherwise one is started with its data in .slos/.")
@click.option("--detach", is_flag=True, help="Return when the cluster serves; stop it with `slosctl down`.")
@click.option("--start-timeout", default=600.0, show_default=True, metavar="SECONDS")
@click.option("--worker-option", multiple=True, metavar="OPTION", help="Passed on to every worker, e.g. --seed=7.")
@click.option("--controller-option", multiple=True, metavar="OPTION", help="Passed on to the controller.")
@json_option
def up(
    engine: str,
    topology: str,
    replicas: int | None,
    prefill: int | None,
    decode: int | None,
    policy: str,
    model: Path | None,
    host: str,
    port: int,
    grpc_port: int,
    redis_url: str,
    detach: bool,
    start_timeout: float,
    worker_option: tuple[str, ...],
    controller_option: tuple[str, ...],
    as_json: bool,
) -> None:
    """Start a cluster on this machine and serve until Ctrl-C."""
    roles = roles_of(topology, replicas, prefill, decode)
    if as_json and not detach:
        raise CliError("--json needs --detach: it says where the cluster serves and returns.", Exit.USAGE)
    here = state.running()
    if here is not None:
        if detach:
            _say_where(here, f"already running: {_where(here)}", as_json)
            return
        raise CliError(f"Already running: {_where(here)}. Stop it with `slosctl down`.", Exit.REFUSED)
    if detach:
        _up_detached(start_timeout, as_json)
        return
    folder = (model or state.state_dir() / "models" / DEFAULT_MODEL).absolute()
    _need_model(folder, given=model is not None)
    options = Options(
        engine=engine,
        roles=roles,
        policy=policy,
        host=host,
        http_port=port,
        grpc_port=grpc_port,
        redis_url=redis_url,
        model=folder,
        worker_arguments=worker_option,
        controller_arguments=controller_option,
    )
    began_s = time.monotonic()

    def say(line: str) -> None:
        click.echo(f"up: {line}")

    def serving() -> None:
        ready = state.load()
        if ready is not None:
            say(f"serving after {time.monotonic() - began_s:.0f} s: {_where(ready)}")
            say(f"logs in {state.state_dir() / 'log'}; Ctrl-C stops everything")

    Supervisor(make_plan(options), say, start_timeout, serving).run()
    say("stopped")


def _where(here: state.ClusterState) -> str:
    return f"OpenAI API http://{here.http_address}/v1, gRPC {here.grpc_address}"


def _say_where(here: state.ClusterState, text: str, as_json: bool) -> None:
    """Say where a cluster serves: its record for programs, a line for people."""
    if as_json:
        print_json(asdict(here))
    else:
        click.echo(text)


def _up_detached(timeout_s: float, as_json: bool) -> None:
    """Run the same command in the background and follow its output until it serves."""
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--detach", "--json")]
    log = state.state_dir() / "log" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + timeout_s + GRACE_S
    # Told to end before it serves, this takes back what it has begun.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(Exit.INTERRUPTED)))
    try:
        with log.open() as lines:
            while True:
                click.echo(lines.read(), nl=False, err=as_json)
                here = state.running()
                if here is not None and here.pid == process.pid and here.ready:
                    text = f"up: serving in the background: {_where(here)}; stop it with `slosctl down`"
                    _say_where(here, text, as_json)
                    return
                if process.poll() is not None:
                    click.echo(lines.read(), nl=False, err=as_json)
                    raise SystemExit(process.returncode)
                if time.monotonic() > deadline_s:
                    raise CliError(f"The cluster did not start within {timeout_s:.0f} s.", Exit.START_FAILED)
                time.sleep(POLL_S)
    except BaseException:
        process.terminate()
        process.wait(GRACE_S * 3)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _need_model(folder: Path, given: bool) -> None:
    """Make the default model if it is not there; CliError when a given folder holds none."""
    if (folder / "config.json").is_file():
        return
    if given:
        raise CliError(f"There is no model in {folder}: it has no config.json.", Exit.USAGE)
    click.echo(f"up: converting the model into {folder} (once)")
    if run_module("engine.vllm.model", ["--out", str(folder)]) != 0:
        raise CliError("The model could not be converted; the lines above say why.", Exit.START_FAILED)
