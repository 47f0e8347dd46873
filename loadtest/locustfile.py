"""For locust's own command and web page: `locust -f loadtest/locustfile.py --host http://127.0.0.1:8000`.

Users are a closed loop here. For bursts add the shape: `-f loadtest/locustfile.py,loadtest/burst_shape.py`.
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from locust import events as locust_events
from locust.env import Environment

from loadtest import options
from loadtest.load import LoadError, prepare
from loadtest.run import attach, detach
from loadtest.users import ChatUser, CodingUser, ReasoningUser, SummarizationUser, ToolUser

__all__ = ["ChatUser", "CodingUser", "ReasoningUser", "SummarizationUser", "ToolUser"]


@locust_events.init_command_line_parser.add_listener
def _add_options(parser: ArgumentParser, **_: Any) -> None:
    options.add_to(parser, own_host=False)


@locust_events.test_start.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    try:
        load = prepare(options.read(environment.parsed_options), closed=True)
    except (LoadError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    attach(environment, load, closed=True)
    load.start()


@locust_events.test_stop.add_listener
def _close(environment: Environment, **_: Any) -> None:
    detach(environment)
    environment.load.close()
