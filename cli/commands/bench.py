"""slosctl bench: measurements with JSON output."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from cli.errors import CliError, Exit
from cli.rpc import Target
from cli.subprocesses import run_module

_MAIN = '__name__ == "__main__"'
_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@click.command(context_settings=_PASS_ON)
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def bench(target: Target, name: str | None, arguments: tuple[str, ...]) -> None:
    """Run benchmark NAME (python -m benchmarks.NAME); further arguments go to it. Without NAME, list them."""
    if name is None or name in ("-h", "--help"):
        click.echo("slosctl bench NAME [ARGUMENTS]; `slosctl bench NAME --help` lists its arguments.\nBenchmarks:")
        for known in names():
            click.echo(f"  {known}")
        return
    module = name.replace("-", "_")
    if module not in (known.replace("-", "_") for known in names()):
        raise CliError(f"There is no benchmark {name!r}; known: {', '.join(names()) or 'none'}.", Exit.NOT_FOUND)
    environment = {"SLOS_ADDRESS": target.address} if target.address else {}
    raise SystemExit(run_module(f"benchmarks.{module}", arguments, environment))


def names() -> list[str]:
    """List the benchmarks of this installation, as a person writes them: the modules that can be run."""
    spec = importlib.util.find_spec("benchmarks")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [] if spec else [])]
    runnable = [path.stem for folder in folders for path in folder.glob("*.py") if _MAIN in path.read_text()]
    return sorted(name.replace("_", "-") for name in runnable)
