"""Locust users, one class per application.

Open loop: one user of each class starts the sessions of the plan at their times, whatever has become of the earlier
ones. Closed loop (`CLOSED_LOOP`): any number of users, each waiting for its answer and then thinking a while.
"""

from __future__ import annotations

import random

import gevent
from locust import User, task
from locust.exception import StopUser

from loadtest.load import Load
from loadtest.session import play


class ApplicationUser(User):
    """What all applications share; the environment carries the run as `load` and whether the loop is closed."""

    abstract = True
    application = ""

    def wait_time(self) -> float:
        """Pause of a closed-loop user: exponential around --think."""
        return random.expovariate(1.0 / self._load().options.think_s)

    @task
    def work(self) -> None:
        """Start the whole plan of the application (open loop), or play one session (closed loop)."""
        load = self._load()
        if not self.environment.closed_loop:  # type: ignore[attr-defined]
            self._dispatch(load)
            raise StopUser
        if not load.sessions(self.application):
            raise StopUser
        play(load, load.next_session(self.application), load.now_s())

    def _dispatch(self, load: Load) -> None:
        sessions = load.sessions(self.application)
        if not sessions:
            return
        try:
            playing = []
            for session in sessions:
                gevent.sleep(max(0.0, session.start_s - load.now_s()))
                playing.append(gevent.spawn(play, load, session, session.start_s))
            gevent.joinall(playing)
        finally:
            load.dispatching -= 1

    def _load(self) -> Load:
        load: Load = self.environment.load  # type: ignore[attr-defined]
        return load


class ChatUser(ApplicationUser):
    """Conversation: loose prefill, loose decode."""

    application = "chatbot"


class CodingUser(ApplicationUser):
    """Code assistant: loose prefill, tight decode."""

    application = "coding"


class SummarizationUser(ApplicationUser):
    """Summary of a long text: tight prefill, loose decode."""

    application = "summarization"


class ToolUser(ApplicationUser):
    """Tool loop: several rounds that share a session, tight decode inside the loop."""

    application = "tool"


class ReasoningUser(ApplicationUser):
    """Long answers that think first: tight while thinking."""

    application = "reasoning"


USERS: tuple[type[ApplicationUser], ...] = (ChatUser, CodingUser, SummarizationUser, ToolUser, ReasoningUser)
