"""Admission with the exact oracle: greedy by deadline (`edf-exact`) and label search (`slos`, the default)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduling.admission import Problem, build, newcomers_of, reason
from scheduling.batching import DEFAULT_SETTINGS, BatchSettings
from scheduling.request_table import BoolArray, RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import AdmissionDecision, Candidate, EngineLimits


@dataclass(frozen=True, slots=True)
class ExactAdmission:
    """Accept the most valuable set that the exact simulation of batches finds feasible.

    max_labels: simulations of the label search at most; 0: only greedy by deadline (edf-exact).
    best_effort_floor: share of the time left to best-effort work while there is any.
    """

    max_labels: int = 128
    settings: BatchSettings = DEFAULT_SETTINGS
    best_effort_floor: float = 0.02

    def decide(
        self,
        now_s: float,
        table: RequestTable,
        free_blocks: int,
        model: TimeModel,
        limits: EngineLimits,
        candidates: Sequence[Candidate],
    ) -> AdmissionDecision:
        """Decide for one replica; candidates are considered in deadline order."""
        possible, declined = newcomers_of(candidates, table, limits)
        if not possible:
            return AdmissionDecision((), declined)
        problem = build(now_s, table, free_blocks, model, limits, possible, self.settings, self.best_effort_floor)
        chosen, explain = self._search(problem)
        if not chosen.all():
            # Why each of the others cannot join the set.
            _, verdicts, binds = problem.greedy(chosen)
            for k in np.flatnonzero(~chosen):
                why = reason(problem, int(k), int(verdicts[k]), int(binds[k]), table)
                declined[problem.newcomers[k].request_id] = why
        accepted = tuple(new.request_id for new, yes in zip(problem.newcomers, chosen, strict=True) if yes)
        return AdmissionDecision(accepted, declined, explain)

    def _search(self, problem: Problem) -> tuple[BoolArray, dict[str, object]]:
        everyone = np.ones(len(problem.items), dtype=np.bool_)
        verdict, _, prefill_s, peak = problem.check(everyone)
        explain: dict[str, object] = {
            "residents": len(problem.residents),
            "candidates": len(problem.items),
            "capacity_blocks": problem.capacity_blocks,
            "peak_blocks": peak,
            "prefill_done_s": prefill_s,
            "labels": 0,
        }
        if verdict == 0:
            return everyone, explain
        best, _, _ = problem.greedy()
        if self.max_labels > 0 and len(everyone) > 1:
            found, value, used, ran_out = problem.label_search(self.max_labels)
            explain.update(labels=used, labels_ran_out=ran_out)
            if value > problem.item_value[best].sum() + 1e-12:
                best = found
        _, _, prefill_s, peak = problem.check(best)
        explain.update(prefill_done_s=prefill_s, peak_blocks=peak)
        return best, explain
