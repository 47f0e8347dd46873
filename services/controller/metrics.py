"""Prometheus metrics of the controller; names and meanings are vLLM's where the thing is the same."""

from __future__ import annotations

from protos.slos.v1 import common_pb2
from services.common.metrics import (
    TOKEN_LATENCY_BUCKETS_S,
    TTFT_BUCKETS_S,
    CollectorRegistry,
    Counter,
    Histogram,
)
from services.controller.request import LiveRequest

_ADMISSION_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
_TOKEN_COUNT_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Metrics:
    """Counters and histograms; the gauges are in gauges.py."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register everything."""
        self.registry = registry
        self._token_histograms: dict[str, tuple[Histogram, Histogram]] = {}
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
        self.drafts = Counter(
            "slos:draft_tokens", "Drafted tokens that were verified.", ["slo_class"], registry=registry
        )
        self.accepted_drafts = Counter(
            "slos:accepted_draft_tokens", "Drafted tokens that were accepted.", ["slo_class"], registry=registry
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
        self.kv_handovers = Counter(
            "slos:kv_handovers", "Requests that decoded with KV of another worker.", registry=registry
        )
        self.kv_recomputed = Counter(
            "slos:kv_transfers_recomputed", "Failed KV transfers whose prompt was recomputed.", registry=registry
        )
        self.kv_transfer = Histogram(
            "slos:kv_transfer_seconds",
            "From the end of a prefill to the step on another worker that used its KV.",
            buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0),
            registry=registry,
        )
        self.step_error = Histogram(
            "slos:step_time_error_ratio",
            "Measured over predicted duration of engine steps.",
            buckets=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0),
            registry=registry,
        )

    def count(self, name: str) -> int:
        """Value of a counter without labels."""
        return int(self.registry.get_sample_value(name) or 0)

    def token_histograms(self, slo_class: str) -> tuple[Histogram, Histogram]:
        """Histograms of (time to first token, inter-token latency) of a class; finding them costs time per token."""
        found = self._token_histograms.get(slo_class)
        if found is None:
            found = self.ttft.labels(slo_class), self.inter_token.labels(slo_class)
            self._token_histograms[slo_class] = found
        return found

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
