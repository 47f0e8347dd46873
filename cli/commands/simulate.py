"""slosctl simulate and capacity: the same brain on virtual time."""

from __future__ import annotations

import click

from cli.subprocesses import run_module

_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@click.command(context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulate(arguments: tuple[str, ...]) -> None:
    """Run one simulation (see `slosctl simulate --help`)."""
    raise SystemExit(run_module("simulation", ["simulate", *arguments]))


@click.command(context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def capacity(arguments: tuple[str, ...]) -> None:
    """Search the highest rate that keeps the SLOs (see `slosctl capacity --help`)."""
    raise SystemExit(run_module("simulation", ["capacity", *arguments]))
