"""Errors that a person sees, and the exit codes that a program sees."""

from __future__ import annotations

from enum import IntEnum

import click


class Exit(IntEnum):
    """Exit codes of slosctl."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    REFUSED = 5
    START_FAILED = 6
    INTERRUPTED = 130


MEANING = {
    Exit.OK: "done",
    Exit.FAILED: "failed; the message says why",
    Exit.USAGE: "the command line is wrong",
    Exit.UNREACHABLE: "the cluster is not running, not reachable or not ready",
    Exit.NOT_FOUND: "there is no such replica, class, tenant, request, model or benchmark",
    Exit.REFUSED: "the cluster refused: bad value, no permission, or not possible in this state",
    Exit.START_FAILED: "the cluster did not start",
    Exit.INTERRUPTED: "interrupted",
}


class CliError(click.ClickException):
    """A failure with a text for people and an exit code for programs."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        """Keep both."""
        super().__init__(message)
        self.exit_code: int = int(code)  # type: ignore[misc]
