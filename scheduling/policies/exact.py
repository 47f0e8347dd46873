"""Admission with the exact oracle: greedy by deadline (`edf-exact`) and label search (`slos`, the default)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduling.admission import Newcomer, Problem, build, newcomers_of, reason
from scheduling.batching import DEFAULT_SETTINGS, BatchSettings
from scheduling.explain import plan_lines
from scheduling.headroom import NO_HEADROOM, Headroom, too_large
from scheduling.kernels.rollout import FEASIBLE
from scheduling.request_table import BoolArray, RequestTable
from scheduling.tiers import MAX_NEW, build_tiers
from scheduling.time_model import TimeModel
from scheduling.types import AdmissionDecision, Candidate, EngineLimits

VALUE_EPS = 1e-9


@dataclass(frozen=True, slots=True)
class ExactAdmission:
    """Accept the most valuable set that the exact simulation of batches finds feasible.

    max_labels: simulations of the label search at most; 0: only greedy by deadline (edf-exact).
    best_effort_floor: share of the time left to best-effort work while there is any.
    headroom: what is kept for requests to come.
    explain_lines: put the budget and demand lines of the plan into the decision.
    """

    max_labels: int = 128
    settings: BatchSettings = DEFAULT_SETTINGS
    best_effort_floor: float = 0.02
    headroom: Headroom = NO_HEADROOM
    explain_lines: bool = False

    def decide(
        self,
        now_s: float,
        table: RequestTable,
        free_blocks: int,
        model: TimeModel,
        limits: EngineLimits,
        candidates: Sequence[Candidate],
    ) -> AdmissionDecision:
        """Decide for one replica; a candidate whose id is resident as best effort asks for promotion."""
        possible, declined = newcomers_of(candidates, table, limits)
        if not possible:
            return AdmissionDecision((), declined)
        problem = build(now_s, table, free_blocks, model, limits, possible, self.settings, self.best_effort_floor)
        if self.headroom != NO_HEADROOM and not (affords := self.headroom.affordable(problem, table)).all():
            for k in np.flatnonzero(~affords):
                large = problem.newcomers[k]
                declined[large.request_id] = too_large(large, limits.block_size)
            possible = [new for new, yes in zip(problem.newcomers, affords, strict=True) if yes]
            if not possible:
                return AdmissionDecision((), declined)
            problem = build(now_s, table, free_blocks, model, limits, possible, self.settings, self.best_effort_floor)
        everyone = np.ones(len(possible), dtype=np.bool_)
        verdict, _, prefill_s, peak = problem.check(everyone)
        explain: dict[str, object] = {
            "residents": len(problem.residents),
            "candidates": len(possible),
            "capacity_blocks": problem.capacity_blocks,
            "margin": model.margin,
            "labels": 0,
            "labels_ran_out": False,
        }
        chosen = everyone
        if verdict != FEASIBLE:
            first, verdicts, binds = problem.greedy()
            chosen = self._search(problem, first, (now_s, table, free_blocks, model, limits), possible, explain)
            if (chosen != first).any():
                # Whether any of the others can join the set still, and why the rest cannot.
                chosen, verdicts, binds = problem.greedy(chosen)
            _, _, prefill_s, peak = problem.check(chosen)
            for k in np.flatnonzero(~chosen):
                why = reason(problem, int(k), int(verdicts[k]), int(binds[k]), table)
                declined[problem.newcomers[k].request_id] = why
        explain["peak_blocks"] = float(peak)
        explain["prefills_done_s"] = float(prefill_s)
        if self.explain_lines:
            explain["lines"] = plan_lines(problem, chosen)
        accepted = tuple(new.request_id for new, yes in zip(problem.newcomers, chosen, strict=True) if yes)
        return AdmissionDecision(accepted, declined, explain)

    def _search(
        self,
        problem: Problem,
        best: BoolArray,
        replica: tuple[float, RequestTable, int, TimeModel, EngineLimits],
        possible: list[Newcomer],
        explain: dict[str, object],
    ) -> BoolArray:
        """Most valuable of {`best`, label search, Algorithm 1} that the oracle holds feasible; all do not fit."""
        if self.max_labels == 0 or len(problem.items) == 1:
            return best
        best_value = float(problem.item_value[best].sum())
        found, value, used, ran_out = problem.label_search(self.max_labels)
        explain.update(labels=used, labels_ran_out=ran_out)
        if value > best_value + VALUE_EPS:
            best, best_value = found, value
        if not ran_out:
            # Every feasible set that adds to a feasible one was a label.
            return best
        # Algorithm 1 plans ten newcomers at most, the first by deadline; only what it may win by is worked out.
        first = sorted(possible, key=lambda new: (new.due_s, new.request_id))[:MAX_NEW]
        values = [new.value for new in first]
        within_reach = sum(values) - (min(values) if len(first) == len(possible) else 0.0)
        if within_reach <= best_value + VALUE_EPS:
            return best
        accepted, value, running = build_tiers(*replica, first).solve_for(first, best_value + VALUE_EPS)
        if running and value > best_value + VALUE_EPS:
            by_id = np.array([new.request_id in accepted for new in problem.newcomers])
            if problem.feasible(by_id):
                best = by_id
        return best
