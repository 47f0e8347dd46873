"""Prometheus metrics: the kinds we use, buckets that fit token latencies, and how they are shown."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import start_http_server
from prometheus_client.registry import Collector

__all__ = [
    "TOKEN_LATENCY_BUCKETS_S",
    "TTFT_BUCKETS_S",
    "Collector",
    "CollectorRegistry",
    "Counter",
    "Gauge",
    "GaugeMetricFamily",
    "Histogram",
    "exposition",
    "serve",
]

TTFT_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
TOKEN_LATENCY_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)


def exposition(registry: CollectorRegistry) -> tuple[bytes, str]:
    """Return the body and the content type of a /metrics answer."""
    return generate_latest(registry), CONTENT_TYPE_LATEST


def serve(registry: CollectorRegistry, host: str, port: int) -> int:
    """Serve /metrics on a thread of its own until the process ends; returns the port, chosen freely for port 0."""
    server, _ = start_http_server(port, addr=host, registry=registry)
    return int(server.server_port)
