"""Entry point of slosctl: the command group, its global options and the last line of defence against tracebacks."""

from __future__ import annotations

import os
import sys

import click

from cli.commands import (
    advise,
    bench,
    chat,
    cluster,
    explain,
    profile,
    replicas,
    requests,
    simulate,
    slo,
    status,
    tenants,
    top,
)
from cli.errors import MEANING, CliError, Exit
from cli.rpc import Target

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code.value:>3}  {text}" for code, text in MEANING.items())


@click.group(
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


for command in (
    cluster.up,
    cluster.down,
    status.status,
    replicas.replicas,
    advise.advise,
    slo.slo,
    tenants.tenants,
    requests.requests,
    explain.explain,
    chat.chat,
    top.top,
    profile.profile,
    simulate.simulate,
    simulate.capacity,
    bench.bench,
):
    cli.add_command(command)


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
