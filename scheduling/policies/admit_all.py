"""Admission of the systems that promise nothing: every request is taken as it comes."""

from __future__ import annotations

from collections.abc import Sequence

from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import AdmissionDecision, Candidate, EngineLimits


class AdmitAll:
    """Accepts everything."""

    def decide(
        self,
        now_s: float,
        table: RequestTable,
        free_blocks: int,
        model: TimeModel,
        limits: EngineLimits,
        candidates: Sequence[Candidate],
    ) -> AdmissionDecision:
        """Accept every candidate."""
        return AdmissionDecision(tuple(c.request_id for c in candidates), {})
