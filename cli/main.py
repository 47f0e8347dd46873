"""Entry point of slosctl: the command group, its global options and the last line of defence against tracebacks."""

from __future__ import annotations

import importlib
import os
import sys

import click

from cli.errors import MEANING, CliError, Exit
from cli.rpc import Target

COMMANDS = {
    "up": "cli.commands.up",
    "down": "cli.commands.down",
    "status": "cli.commands.status",
    "replicas": "cli.commands.replicas",
    "advise": "cli.commands.advise",
    "slo": "cli.commands.slo",
    "tenants": "cli.commands.tenants",
    "requests": "cli.commands.requests",
    "explain": "cli.commands.explain",
    "chat": "cli.commands.chat",
    "top": "cli.commands.top",
    "profile": "cli.commands.profile",
    "simulate": "cli.commands.simulate",
    "capacity": "cli.commands.simulate",
    "bench": "cli.commands.bench",
}
"""Name -> module that defines it; imported when it is asked for, since some need the planner and most do not."""

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code.value:>3}  {text}" for code, text in MEANING.items())


class _Commands(click.Group):
    """The commands by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click.Group."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See click.Group."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "auto_envvar_prefix": "SLOS"},
    epilog=_EPILOG,
)
@click.version_option(package_name="slos-serve", prog_name="slosctl")
@click.option("--address", default="", metavar="HOST:PORT", help="gRPC address of the controller. [env SLOS_ADDRESS]")
@click.option("--token", default="", help="Cluster token. [env SLOS_TOKEN]")
@click.option("--tls-ca", default="", metavar="FILE", help="Authority of the controller's certificate.")
@click.option("--tls-cert", default="", metavar="FILE", help="Certificate of this client, for mutual TLS.")
@click.option("--tls-key", default="", metavar="FILE", help="Its key.")
@click.pass_context
def cli(context: click.Context, address: str, token: str, tls_ca: str, tls_cert: str, tls_key: str) -> None:
    """Start an SLOs-Serve cluster on this machine, and operate any cluster.

    Without --address, commands talk to the cluster started from this folder, else to localhost:9000.
    """
    context.obj = Target(address, token, tls_ca, tls_cert, tls_key)


def main() -> None:
    """Run slosctl; every way out is an exit code of cli.errors.Exit, never a traceback."""
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else Exit.OK)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(Exit.INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away (for example `| head`); nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OK)
    except Exception as error:
        if os.environ.get("SLOS_DEBUG"):
            raise
        CliError(f"{type(error).__name__}: {error} (set SLOS_DEBUG=1 for the whole story)").show()
        sys.exit(Exit.FAILED)


if __name__ == "__main__":
    main()
