"""A burst for locust's own command: -u users, then --spike times as many, then -u again, over --duration."""

from __future__ import annotations

from locust import LoadTestShape

from loadtest.arrivals import Spike
from loadtest.shapes import BurstShape


class Burst(LoadTestShape):
    """Base, spike, base, from the command's options."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """See locust.LoadTestShape."""
        given = self.runner.environment.parsed_options
        spike = Spike(given.spike, given.spike_start, given.spike_length)
        shape = BurstShape(int(given.num_users or 1), spike, given.duration)
        shape.start_time = self.start_time
        return shape.tick()
