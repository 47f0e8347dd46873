"""Admission with the exact oracle: greedy by deadline (`edf-exact`) and label search (`slos`, the default)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduling.admission import Problem, ask_alone, build, reason, who_binds
from scheduling.batch_settings import DEFAULT_SETTINGS, BatchSettings
from scheduling.explain import plan_lines
from scheduling.headroom import NO_HEADROOM, Headroom
from scheduling.kernels.problem import ITSELF
from scheduling.kernels.rollout import FEASIBLE, TOO_LARGE
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
    explains: say why and by which numbers, not only who is accepted.
    explain_lines: put the budget and demand lines of the plan into the decision too.
    """

    max_labels: int = 128
    settings: BatchSettings = DEFAULT_SETTINGS
    best_effort_floor: float = 0.02
    headroom: Headroom = NO_HEADROOM
    beside_hopeful: bool = False
    explains: bool = True
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
        if len(possible) == 1 and not self.explain_lines:
            return self._decide_one(now_s, table, free_blocks, model, limits, possible[0], declined)
        problem = build(
            now_s,
            table,
            free_blocks,
            model,
            limits,
            possible,
            self.settings,
            self.best_effort_floor,
            self.beside_hopeful,
        )
        verdict, bind, prefills_s, _ = problem.of_all
        # One that cannot be promised for itself is not asked what it leaves to others.
        if self.headroom.keeps and (verdict == FEASIBLE or len(possible) > 1):
            affords = self.headroom.affordable(problem, table, prefills_s if verdict == FEASIBLE else math.inf)
            if not affords.all():
                if self.explains:
                    for k in np.flatnonzero(~affords):
                        large, blocks = problem.newcomers[k], problem.capacity_blocks
                        declined[large.request_id] = reason(large, TOO_LARGE, "", now_s, limits, blocks)
                if not affords.any():
                    nobody = np.zeros(len(possible), dtype=np.bool_)
                    return AdmissionDecision((), declined, self._explain(problem, nobody, model.margin, {}))
                problem = problem.only(affords)
                possible = problem.newcomers
                verdict, bind, _, _ = problem.of_all
        search: dict[str, object] = {}
        chosen = np.ones(len(possible), dtype=np.bool_)
        if verdict != FEASIBLE:
            replica = (now_s, table, free_blocks, model, limits)
            chosen, verdicts, binds = self._choose(problem, (verdict, bind), replica, possible, search)
            if self.explains:
                for k in np.flatnonzero(~chosen):
                    who = who_binds(problem, int(k), int(binds[k]), table)
                    new = problem.newcomers[k]
                    declined[new.request_id] = reason(
                        new, int(verdicts[k]), who, now_s, limits, problem.capacity_blocks
                    )
        accepted = tuple(new.request_id for new, yes in zip(problem.newcomers, chosen, strict=True) if yes)
        return AdmissionDecision(accepted, declined, self._explain(problem, chosen, model.margin, search))

    def _decide_one(
        self,
        now_s: float,
        table: RequestTable,
        free_blocks: int,
        model: TimeModel,
        limits: EngineLimits,
        new: Newcomer,
        declined: dict[str, str],
    ) -> AdmissionDecision:
        """Decide where only one can come: there is nothing to search, and one compiled call has the answer."""
        verdict, binds, prefills_s, peak, residents, capacity_blocks = ask_alone(
            now_s,
            table,
            free_blocks,
            model,
            limits,
            new,
            self.settings,
            self.best_effort_floor,
            self.beside_hopeful,
            self.headroom.array,
            self.explains,
        )
        accepted = (new.request_id,) if verdict == FEASIBLE else ()
        if not self.explains:
            return AdmissionDecision(accepted, declined)
        explain = _numbers(residents, 1, capacity_blocks, model.margin, prefills_s, peak)
        if not accepted:
            who = "this request" if binds == ITSELF else f"request {table.request_id(binds)}" if binds >= 0 else ""
            declined[new.request_id] = reason(new, verdict, who, now_s, limits, capacity_blocks)
        return AdmissionDecision(accepted, declined, explain)

    def _explain(
        self, problem: Problem, chosen: BoolArray, margin: float, search: dict[str, object]
    ) -> dict[str, object]:
        """The numbers of the plan in which these newcomers are taken, and of the search that found them."""
        if not self.explains:
            return {}
        _, _, prefills_s, peak = problem.of_all if chosen.all() else problem.check(chosen)
        explain = _numbers(
            len(problem.residents), len(problem.newcomers), problem.capacity_blocks, margin, prefills_s, peak
        )
        if self.explain_lines:
            explain["lines"] = plan_lines(problem, chosen)
        return explain | search

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


def _numbers(
    residents: int, candidates: int, capacity_blocks: float, margin: float, prefills_s: float, peak_blocks: float
) -> dict[str, object]:
    return {
        "residents": residents,
        "candidates": candidates,
        "capacity_blocks": capacity_blocks,
        "margin": margin,
        "peak_blocks": float(peak_blocks),
        "prefills_done_s": float(prefills_s),
        "labels": 0,
        "labels_ran_out": False,
    }
