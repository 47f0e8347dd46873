"""Prometheus metrics of the controller; names and meanings are vLLM's where the thing is the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from protos.slos.v1 import common_pb2
from scheduling.types import Admission
from services.common.metrics import (
    TOKEN_LATENCY_BUCKETS_S,
    TTFT_BUCKETS_S,
    CollectorRegistry,
    Counter,
    Histogram,
)
from services.controller.replica import Replica, ReplicaState
from services.controller.request import LiveRequest

_ADMISSION_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
_TOKEN_COUNT_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Gauges(Protocol):
    """What is counted at the moment of asking."""

    def running(self) -> dict[tuple[str, str], int]:
        """Requests on replicas by (class, admission)."""
        ...

    def waiting(self) -> tuple[int, int]:
        """Requests (without an answer yet, in the best-effort queue)."""
        ...

    def all_replicas(self) -> Iterable[Replica]:
        """Every replica that is known."""
        ...

    def redis_ok(self) -> bool:
        """Redis answered the last call."""
        ...

    def relay_p99_s(self) -> float:
        """Time between engine and front door."""
        ...


class Metrics:
    """Counters and histograms; gauges are read when somebody asks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register everything."""
        self.registry = registry
        self._collector: _GaugeCollector | None = None
        self.ttft = Histogram(
            "slos:time_to_first_token_seconds",
            "From arrival to the first output token.",
            ["slo_class"],
            buckets=TTFT_BUCKETS_S,
            registry=registry,
        )
        self.inter_token = Histogram(
            "slos:inter_token_latency_seconds",
            "Between output tokens of a request.",
            ["slo_class"],
            buckets=TOKEN_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.e2e = Histogram(
            "slos:e2e_request_latency_seconds",
            "From arrival to the last token.",
            ["slo_class"],
            buckets=(*TTFT_BUCKETS_S, 160.0, 320.0, 640.0),
            registry=registry,
        )
        self.admission = Histogram(
            "slos:admission_latency_seconds",
            "From arrival to the answer of admission.",
            buckets=_ADMISSION_BUCKETS_S,
            registry=registry,
        )
        self.prompt_lengths = Histogram(
            "slos:request_prompt_tokens", "Prompt lengths.", buckets=_TOKEN_COUNT_BUCKETS, registry=registry
        )
        self.output_lengths = Histogram(
            "slos:request_generation_tokens", "Output lengths.", buckets=_TOKEN_COUNT_BUCKETS, registry=registry
        )
        self.success = Counter(
            "slos:request_success",
            "Requests that have ended, by why.",
            ["finished_reason", "slo_class"],
            registry=registry,
        )
        self.prompt_tokens = Counter("slos:prompt_tokens", "Prompt tokens of ended requests.", registry=registry)
        self.generation_tokens = Counter("slos:generation_tokens", "Output tokens.", registry=registry)
        self.cached_tokens = Counter(
            "slos:prefix_cache_hits", "Prompt tokens found in a prefix cache.", registry=registry
        )
        self.admitted = Counter(
            "slos:admissions", "First answers of admission.", ["slo_class", "admission"], registry=registry
        )
        self.promised = Counter("slos:promises_made", "Ended requests ever promised.", ["slo_class"], registry=registry)
        self.kept = Counter("slos:promises_kept", "Promised requests that attained.", ["slo_class"], registry=registry)
        self.attained = Counter("slos:slo_attained", "Ended requests that attained.", ["slo_class"], registry=registry)
        self.refused = Counter("slos:requests_refused", "Requests that were not served.", ["code"], registry=registry)
        self.failovers = Counter("slos:failovers", "Requests whose replica was lost.", registry=registry)
        self.promotions = Counter(
            "slos:promotions", "Best-effort requests that were promised later.", registry=registry
        )
        self.relegations = Counter("slos:relegations", "Promises that an engine took back.", registry=registry)
        self.kv_recomputed = Counter(
            "slos:kv_transfers_recomputed", "Failed KV transfers whose prompt was recomputed.", registry=registry
        )
        self.step_error = Histogram(
            "slos:step_time_error_ratio",
            "Measured over predicted duration of engine steps.",
            buckets=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0),
            registry=registry,
        )

    def watch(self, gauges: Gauges) -> None:
        """Show what is counted at the moment of asking, too."""
        self._collector = _GaugeCollector(gauges)
        self.registry.register(self._collector)

    def unwatch(self) -> None:
        """Show counters and histograms only."""
        if self._collector is not None:
            self.registry.unregister(self._collector)
            self._collector = None

    def ended(self, request: LiveRequest, outcome: common_pb2.Outcome) -> None:
        """Count a request that has ended."""
        name = common_pb2.FinishReason.Name(request.finish_reason).removeprefix("FINISH_REASON_").lower()
        self.success.labels(name, request.slo_class).inc()
        self.prompt_tokens.inc(request.prompt_tokens)
        self.prompt_lengths.observe(request.prompt_tokens)
        self.cached_tokens.inc(request.cached_tokens)
        self.output_lengths.observe(len(request.output))
        self.e2e.labels(request.slo_class).observe(max(0.0, request.finished_s - request.arrival_s))
        if request.finish_reason == common_pb2.FINISH_REASON_CANCELLED:
            return
        if outcome.promised:
            self.promised.labels(request.slo_class).inc()
        if outcome.promise_kept:
            self.kept.labels(request.slo_class).inc()
        if outcome.attained:
            self.attained.labels(request.slo_class).inc()


class _GaugeCollector(Collector):
    """Reads gauges at the time of a scrape, so that nothing has to keep them up to date."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Build every gauge."""
        gauges = self._gauges
        running = GaugeMetricFamily("slos:num_requests_running", "On replicas.", labels=["slo_class", "admission"])
        for (slo_class, admission), count in gauges.running().items():
            running.add_metric([slo_class, admission], count)
        yield running
        undecided, queued = gauges.waiting()
        yield GaugeMetricFamily("slos:num_requests_waiting", "Without an answer or a replica.", undecided + queued)
        yield GaugeMetricFamily("slos:best_effort_queue_length", "Best-effort requests without a replica.", queued)
        yield GaugeMetricFamily("slos:redis_up", "Redis answered the last call.", float(gauges.redis_ok()))
        yield GaugeMetricFamily("slos:relay_p99_seconds", "Between engine and front door.", gauges.relay_p99_s())
        up = GaugeMetricFamily("slos:replica_up", "The replica takes new work.", labels=["replica"])
        usage = GaugeMetricFamily("slos:kv_cache_usage_perc", "KV memory in use (0..1).", labels=["replica"])
        resident = GaugeMetricFamily("slos:replica_requests", "On the replica.", labels=["replica", "admission"])
        steps = GaugeMetricFamily("slos:replica_steps", "Engine steps seen.", labels=["replica"])
        rtt = GaugeMetricFamily("slos:replica_rtt_seconds", "Round trip to the worker.", labels=["replica"])
        margin = GaugeMetricFamily("slos:time_margin_ratio", "Safety factor on predicted times.", labels=["replica"])
        for replica in gauges.all_replicas():
            name = [replica.worker_id]
            up.add_metric(name, float(replica.state is ReplicaState.READY))
            steps.add_metric(name, replica.steps)
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
