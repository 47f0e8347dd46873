"""Shapes of a run: how many users there are at each moment."""

from __future__ import annotations

from locust import LoadTestShape

from loadtest.load import Load


class PlanShape(LoadTestShape):
    """Open loop: one user per application until the plan is done, or until the last answer is overdue."""

    abstract = True

    def __init__(self, load: Load) -> None:
        super().__init__()
        self._load = load
        self._users = len(load.plan.applications)
        self._end_s = load.plan.duration_s + load.options.timeout_s * max(len(s.rounds) for s in load.plan.sessions)

    def tick(self) -> tuple[int, float] | None:
        """See locust.LoadTestShape."""
        if self._load.done or self._load.now_s() > self._end_s:
            return None
        return self._users, float(self._users)


class BurstShape(LoadTestShape):
    """Closed loop: a base number of users, a spike, and the base again, on the clock of the run."""

    abstract = True

    def __init__(self, load: Load, base_users: int) -> None:
        super().__init__()
        self._load = load
        self._base_users = base_users

    def tick(self) -> tuple[int, float] | None:
        """See locust.LoadTestShape."""
        return burst_users(self._load, self._base_users)


def burst_users(load: Load, base_users: int) -> tuple[int, float] | None:
    """Users of a burst now, all of them at once; None when the run is over."""
    share = load.now_s() / load.options.duration_s
    if share >= 1.0:
        return None
    users = max(1, round(base_users * load.options.spike.level(share)))
    return users, float(users)
