"""Prometheus gauges, read from the core when somebody asks, so that nothing has to keep them up to date."""

from __future__ import annotations

from collections.abc import Iterator

from scheduling.types import Admission
from services.common.metrics import Collector, GaugeMetricFamily
from services.controller.core import Core
from services.controller.replica_events import ReplicaState


class CoreGauges(Collector):
    """Names and meanings are vLLM's where the thing is the same."""

    def __init__(self, core: Core) -> None:
        """Read this core."""
        self._core = core

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Build every gauge."""
        core = self._core
        running = GaugeMetricFamily("slos:num_requests_running", "On replicas.", labels=["slo_class", "admission"])
        for (slo_class, admission), count in core.running().items():
            running.add_metric([slo_class, admission], count)
        yield running
        queued = len(core.queue)
        waiting = len(core.admission.pending()) + queued
        yield GaugeMetricFamily("slos:num_requests_waiting", "Without an answer or a replica.", waiting)
        yield GaugeMetricFamily("slos:best_effort_queue_length", "Best-effort requests without a replica.", queued)
        yield GaugeMetricFamily("slos:redis_up", "Redis answered the last call.", float(core.store.available))
        relay_times = core.accounts.relay_times
        yield GaugeMetricFamily("slos:relay_p50_seconds", "From engine to front door, median.", relay_times.p50_s)
        yield GaugeMetricFamily("slos:relay_p99_seconds", "From engine to front door, p99.", relay_times.p99_s)
        yield GaugeMetricFamily("slos:journal_backlog", "Requests with something to write.", core.journal.backlog)
        up = GaugeMetricFamily("slos:replica_up", "The replica takes new work.", labels=["replica"])
        usage = GaugeMetricFamily("slos:kv_cache_usage_perc", "KV memory in use (0..1).", labels=["replica"])
        resident = GaugeMetricFamily("slos:replica_requests", "On the replica.", labels=["replica", "admission"])
        steps = GaugeMetricFamily("slos:replica_steps", "Engine steps seen.", labels=["replica"])
        rtt = GaugeMetricFamily("slos:replica_rtt_seconds", "Round trip to the worker.", labels=["replica"])
        margin = GaugeMetricFamily("slos:time_margin_ratio", "Safety factor on predicted times.", labels=["replica"])
        for replica in core.replicas:
            name = [replica.worker_id]
            up.add_metric(name, float(replica.state is ReplicaState.READY))
            steps.add_metric(name, replica.steps.count)
            rtt.add_metric(name, replica.link.rtt_s)
            if replica.mirror is None:
                continue
            total = replica.mirror.limits.total_blocks
            usage.add_metric(name, 1.0 - replica.mirror.free_blocks / total if total else 0.0)
            margin.add_metric(name, replica.mirror.model.margin)
            standard, best_effort = replica.mirror.counts()
            resident.add_metric([*name, Admission.STANDARD], standard)
            resident.add_metric([*name, Admission.BEST_EFFORT], best_effort)
        yield from (up, usage, resident, steps, rtt, margin)
