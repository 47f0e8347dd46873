"""slosctl down: the end of the cluster on this machine."""

from __future__ import annotations

import os
import signal
import time

import click

from cli import state
from cli.cluster.redis_probe import stop_left_over
from cli.cluster.supervisor import GRACE_S
from cli.errors import CliError
from cli.output import json_option, print_json

POLL_S = 0.1


@click.command()
@click.option("--timeout", default=GRACE_S + 20.0, show_default=True, metavar="SECONDS")
@json_option
def down(timeout: float, as_json: bool) -> None:
    """Stop the cluster that `slosctl up` started from this folder."""
    here = state.running()
    if here is None:
        _clear_left_overs()
    else:
        _stop(here, timeout)
    if as_json:
        print_json({"stopped": here is not None})
    else:
        click.echo("stopped" if here is not None else "no cluster of this folder runs")


def _stop(here: state.ClusterState, timeout_s: float) -> None:
    os.kill(here.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + timeout_s
    while state.process_started(here.pid) == here.pid_started:
        if time.monotonic() > deadline_s:
            os.kill(here.pid, signal.SIGKILL)
            _clear_left_overs()
            raise CliError(f"The supervisor (process {here.pid}) did not end within {timeout_s:.0f} s and was killed.")
        time.sleep(POLL_S)


def _clear_left_overs() -> None:
    """End what a killed supervisor may have left: its children end by themselves, its Redis is told to."""
    stop_left_over(state.state_dir() / "redis")
    state.forget()
