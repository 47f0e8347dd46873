"""Settings that every process takes, as options (--redis-url) or from the environment (SLOS_REDIS_URL).

Each decorator adds a group of options to a click command and hands the command one object in their place:

    @click.command(context_settings=CONTEXT)
    @store_options
    @security_options
    @logging_options
    def main(store: StoreSettings, security: SecuritySettings, logs: LogSettings) -> None: ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from services.common import logging as line_logging
from services.common.security import SecuritySettings
from services.common.store.connection import StoreSettings, redact

CONTEXT = {"auto_envvar_prefix": "SLOS", "help_option_names": ["-h", "--help"], "show_default": True}
"""Settings of a command whose options also come from SLOS_ variables."""

Command = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How much is logged, and in which form."""

    level: str = "INFO"
    as_json: bool = False

    def apply(self, service: str) -> None:
        """Set the process up; service names it in every line."""
        line_logging.setup(service, self.level, self.as_json)


def store_options(command: Command) -> Command:
    """Add where Redis is."""
    default = StoreSettings()
    return _group(
        command,
        "store",
        [
            click.option(
                "--redis-url",
                default=default.url,
                callback=_redis_url,
                help="redis://, rediss:// (TLS) or unix://",
                show_envvar=True,
            ),
            click.option("--redis-prefix", default=default.prefix, help="keeps clusters on one Redis apart"),
            click.option("--redis-ca", default="", help="file with the authority of Redis' certificate"),
        ],
        lambda values: StoreSettings(url=values["redis_url"], prefix=values["redis_prefix"], tls_ca=values["redis_ca"]),
    )


def _redis_url(_: click.Context, __: click.Parameter, url: str) -> str:
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise click.BadParameter(f"{redact(url)!r} is no Redis URL; write redis://host:port/0, rediss:// or unix://")
    return url


def security_options(command: Command) -> Command:
    """Add TLS and the cluster token."""
    return _group(
        command,
        "security",
        [
            click.option("--tls-cert", default="", help="certificate of this process, PEM file"),
            click.option("--tls-key", default="", help="its key, PEM file"),
            click.option("--tls-ca", default="", help="authority that signs the cluster's certificates, PEM file"),
            click.option("--tls-require-client-cert", is_flag=True, help="take only peers that the authority signed"),
            click.option("--token", default="", help="secret shared by the cluster's parts", show_envvar=True),
        ],
        lambda values: SecuritySettings(
            tls_cert=values["tls_cert"],
            tls_key=values["tls_key"],
            tls_ca=values["tls_ca"],
            token=values["token"],
            require_client_cert=values["tls_require_client_cert"],
        ),
    )


def logging_options(command: Command) -> Command:
    """Add the form of the logs."""
    return _group(
        command,
        "logs",
        [
            click.option("--log-level", default="INFO", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"])),
            click.option("--log-json", is_flag=True, help="one JSON object per line"),
        ],
        lambda values: LogSettings(values["log_level"], values["log_json"]),
    )


def _group(
    command: Command, name: str, options: list[Callable[[Command], Command]], build: Callable[[dict[str, Any]], object]
) -> Command:
    """Give a command the options, and an object built from their values under one name."""
    probe = click.Command("probe")
    for option in options:
        option(probe)
    names = [parameter.name for parameter in probe.params if parameter.name]

    @functools.wraps(command)
    def with_object(*args: Any, **kwargs: Any) -> Any:
        values = {option: kwargs.pop(option) for option in names}
        return command(*args, **{**kwargs, name: build(values)})

    decorated: Command = with_object
    for option in reversed(options):
        decorated = option(decorated)
    return decorated
