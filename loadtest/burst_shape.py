"""A burst for locust's own command: -u users, then --spike times as many, then -u again, over --duration."""

from __future__ import annotations

from locust import LoadTestShape

from loadtest.load import Load
from loadtest.shapes import burst_users


class Burst(LoadTestShape):
    """Base, spike, base, from the command's options."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """See locust.LoadTestShape."""
        environment = self.runner.environment
        base_users = int(environment.parsed_options.num_users or 1)
        # The first tick starts the test, and only that makes the load.
        load: Load | None = getattr(environment, "load", None)
        return (base_users, float(base_users)) if load is None else burst_users(load, base_users)
