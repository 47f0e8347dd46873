"""What every process shares: Redis, settings, logs, metrics, security and clocks."""
