"""What a worker shows to Prometheus."""

from __future__ import annotations

from engine.protocol import StepEvent
from services.common.metrics import TOKEN_LATENCY_BUCKETS_S, CollectorRegistry, Counter, Gauge, Histogram
from services.worker_host.host import WorkerHost


class WorkerMetrics:
    """Counts steps and tokens; the rest is read from the host when somebody looks."""

    def __init__(self, host: WorkerHost) -> None:
        """Register everything."""
        self.registry = CollectorRegistry()
        worker = host.info.worker_id
        self._step_s = Histogram(
            "slos_worker_step_seconds",
            "Duration of engine steps.",
            ["worker"],
            buckets=TOKEN_LATENCY_BUCKETS_S,
            registry=self.registry,
        ).labels(worker)
        self._computed = Counter(
            "slos_worker_batch_tokens", "Tokens computed in steps.", ["worker"], registry=self.registry
        ).labels(worker)
        self._output = Counter(
            "slos_worker_output_tokens", "Output tokens produced.", ["worker"], registry=self.registry
        ).labels(worker)
        self._free_blocks = Gauge("slos_worker_free_kv_blocks", "Free KV blocks.", ["worker"], registry=self.registry)
        self._free_blocks.labels(worker).set(host.info.kv_blocks)
        self._worker = worker
        for name, text, value in (
            ("slos_worker_requests", "Requests held, running or waiting.", lambda: len(host.requests)),
            ("slos_worker_unacknowledged_events", "Events kept for the controller.", lambda: len(host.events)),
            ("slos_worker_refits", "Times that the time model was fitted again.", lambda: float(host.refits)),
            ("slos_worker_attached", "1 while a controller is attached.", lambda: float(host.session is not None)),
        ):
            Gauge(name, text, ["worker"], registry=self.registry).labels(worker).set_function(value)

    def stepped(self, step: StepEvent) -> None:
        """Count a step."""
        if step.batch_requests:
            self._step_s.observe(step.duration_s)
        self._computed.inc(step.batch_tokens)
        self._output.inc(sum(len(update.token_ids) for update in step.updates))
        self._free_blocks.labels(self._worker).set(step.free_blocks)
