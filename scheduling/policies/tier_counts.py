"""Admission by the paper's chained PB*: Algorithm 1 (`dp`), or greedy by deadline with the same budget (`edf-pb`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduling.newcomers import newcomers_of
from scheduling.request_table import RequestTable
from scheduling.tiers import MAX_NEW, build_tiers
from scheduling.time_model import TimeModel
from scheduling.types import AdmissionDecision, Candidate, EngineLimits


@dataclass(frozen=True, slots=True)
class TierAdmission:
    """Accept the most valuable subset (or, greedy, what fits in deadline order); at most 10 new requests per call."""

    greedy: bool = False

    def decide(
        self,
        now_s: float,
        table: RequestTable,
        free_blocks: int,
        model: TimeModel,
        limits: EngineLimits,
        candidates: Sequence[Candidate],
    ) -> AdmissionDecision:
        """Decide for one replica; requests beyond the tenth by deadline are declined until the next call."""
        possible, declined = newcomers_of(candidates, table, limits)
        possible.sort(key=lambda new: (new.due_s, new.request_id))
        for new in possible[MAX_NEW:]:
            declined[new.request_id] = f"at most {MAX_NEW} new requests are planned at once; ask again"
        possible = possible[:MAX_NEW]
        if not possible:
            return AdmissionDecision((), declined)
        problem = build_tiers(now_s, table, free_blocks, model, limits, possible)
        if self.greedy:
            chosen, feasible = problem.greedy(), problem.feasible(problem.forced)
        else:
            chosen, _, feasible = problem.solve()
        accepted = []
        for item, new_index in enumerate(problem.new_index):
            if new_index < 0:
                continue
            new = possible[new_index]
            if feasible and chosen[item]:
                accepted.append(new.request_id)
            elif not feasible:
                declined[new.request_id] = "the running requests alone use the whole budget; wait for one to finish"
            else:
                declined[new.request_id] = (
                    f"no prefill budget or memory for {new.rem} prompt tokens due in {1000 * (new.due_s - now_s):.0f} "
                    "ms beside more valuable work; use looser SLOs or wait"
                )
        explain: dict[str, object] = {
            "tiers_s": [float(tier) for tier in problem.tiers],
            "decoding": [int(count) for count in problem.decoding],
            "free_blocks": problem.free_memory,
            "running_feasible": bool(feasible),
        }
        return AdmissionDecision(tuple(accepted), declined, explain)
