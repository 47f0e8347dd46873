"""The names of everything in Redis."""

from __future__ import annotations


class Keys:
    """Key names under one prefix; the braces keep all of them in one slot of a Redis Cluster."""

    def __init__(self, prefix: str) -> None:
        """Take the namespace, so that several clusters can share one Redis."""
        self._base = "{" + prefix + "}:"
        self.replicas = self._base + "replicas"
        self.slo_classes = self._base + "slo_classes"
        self.tenants = self._base + "tenants"
        self.seeded = self._base + "seeded"
        self.time_models = self._base + "time_models"
        self.best_effort = self._base + "best_effort"
        self.leader = self._base + "leader"
        self.fence = self._base + "fence"
        self.journal_open = self._base + "journal_open"
        self.journal_recent = self._base + "journal_recent"

    def lease(self, worker_id: str) -> str:
        """Lease of a worker."""
        return f"{self._base}lease:{worker_id}"

    def journal(self, request_id: str) -> str:
        """Journal of a request."""
        return f"{self._base}journal:{request_id}"
