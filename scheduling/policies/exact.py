"""Admission with the exact oracle: greedy by deadline (`edf-exact`) and label search (`slos`, the default)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduling.admission import Problem, build, reason
from scheduling.batch_settings import DEFAULT_SETTINGS, BatchSettings
from scheduling.explain import plan_lines
from scheduling.headroom import NO_HEADROOM, Headroom, too_large
from scheduling.kernels.rollout import FEASIBLE
from scheduling.newcomers import Newcomer, newcomers_of
from scheduling.request_table import BoolArray, IntArray, RequestTable
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
    beside_hopeful: hopeful residents are kept too, not only promised ones.
    explain_lines: put the budget and demand lines of the plan into the decision.
    """

    max_labels: int = 128
    settings: BatchSettings = DEFAULT_SETTINGS
    best_effort_floor: float = 0.02
    headroom: Headroom = NO_HEADROOM
    beside_hopeful: bool = False
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
        problem = build(
            now_s,
            table,
            free_blocks,
            model,
            limits,
            possible,
            self.settings,
            self.best_effort_floor,
            beside_hopeful=self.beside_hopeful,
        )
        verdict, bind, *ends = problem.of_all
        # One that cannot be promised for itself is not asked what it leaves to others.
        if self.headroom != NO_HEADROOM and (verdict == FEASIBLE or len(possible) > 1):
            affords = self.headroom.affordable(problem, table, ends[0] if verdict == FEASIBLE else math.inf)
            if not affords.all():
                for k in np.flatnonzero(~affords):
                    large = problem.newcomers[k]
                    declined[large.request_id] = too_large(large, limits.block_size)
                if not affords.any():
                    nobody = np.zeros(len(possible), dtype=np.bool_)
                    return AdmissionDecision(
                        (), declined, self._explain(problem, nobody, model.margin, problem.check(nobody)[2:])
                    )
                problem = problem.only(affords)
                possible = problem.newcomers
                verdict, bind, *ends = problem.of_all
        search: dict[str, object] = {"labels": 0, "labels_ran_out": False}
        chosen = np.ones(len(possible), dtype=np.bool_)
        if verdict != FEASIBLE:
            replica = (now_s, table, free_blocks, model, limits)
            chosen, verdicts, binds = self._choose(problem, (verdict, bind), replica, possible, search)
            _, _, *ends = problem.check(chosen)
            for k in np.flatnonzero(~chosen):
                why = reason(problem, int(k), int(verdicts[k]), int(binds[k]), table)
                declined[problem.newcomers[k].request_id] = why
        accepted = tuple(new.request_id for new, yes in zip(problem.newcomers, chosen, strict=True) if yes)
        return AdmissionDecision(accepted, declined, {**self._explain(problem, chosen, model.margin, ends), **search})

    def _explain(self, problem: Problem, chosen: BoolArray, margin: float, ends: Sequence[float]) -> dict[str, object]:
        """The numbers of the plan in which these newcomers are taken; ends: what problem.check says last of it."""
        prefills_s, peak = ends
        explain: dict[str, object] = {
            "residents": len(problem.residents),
            "candidates": len(problem.newcomers),
            "capacity_blocks": problem.capacity_blocks,
            "margin": margin,
            "peak_blocks": float(peak),
            "prefills_done_s": float(prefills_s),
        }
        if self.explain_lines:
            explain["lines"] = plan_lines(problem, chosen)
        return explain

    def _choose(
        self,
        problem: Problem,
        of_all: tuple[int, int],
        replica: tuple[float, RequestTable, int, TimeModel, EngineLimits],
        possible: list[Newcomer],
        found_by: dict[str, object],
    ) -> tuple[BoolArray, IntArray, IntArray]:
        """Whom to take where all do not fit; (accepted, verdict, column that binds) for each newcomer.

        of_all: verdict on all of them, and the column that binds.
        """
        if len(possible) == 1:
            return np.zeros(1, np.bool_), np.array(of_all[:1]), np.array(of_all[1:])
        first, verdicts, binds = problem.greedy()
        chosen = self._search(problem, first, replica, possible, found_by)
        # Whether any of the others can join a set that is not the first still, and why the rest cannot.
        return problem.greedy(chosen) if (chosen != first).any() else (chosen, verdicts, binds)

    def _search(
        self,
        problem: Problem,
        best: BoolArray,
        replica: tuple[float, RequestTable, int, TimeModel, EngineLimits],
        possible: list[Newcomer],
        found_by: dict[str, object],
    ) -> BoolArray:
        """Most valuable of {`best`, label search, Algorithm 1} that the oracle holds feasible; all do not fit."""
        if self.max_labels == 0:
            return best
        best_value = float(problem.item_value[best].sum())
        found, value, used, ran_out = problem.label_search(self.max_labels, best_value)
        found_by.update(labels=used, labels_ran_out=ran_out)
        if value > best_value + VALUE_EPS:
            best, best_value = found, value
        if not ran_out:
            # Every feasible set that adds to a feasible one was a label, or could not have been worth more.
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
