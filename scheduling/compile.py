"""`python -m scheduling.compile`: compile every kernel into the cache, so that no first request pays for it."""

from __future__ import annotations

from collections.abc import Sequence

from scheduling import registry, routing
from scheduling.foresight import after_step
from scheduling.kernels.spare import FEWEST
from scheduling.policy import ReplicaView
from scheduling.promotion import promote
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import Candidate, EngineLimits, Slo

_MODEL = TimeModel(((0.02, 1e-4, 1e-5, 1e-8, 1e-9, 1e-3),))
_LIMITS = EngineLimits(2048, 64, 16, 4096, 4096)


OWN = ("slos", "edf-exact", "dp", "edf-pb")


def warm_up(names: Sequence[str] = OWN) -> None:
    """Run every kernel of these policies once; later calls in this process load or reuse compiled code."""
    table = RequestTable()
    for k in range(FEWEST):
        table.add(
            f"decode {k}",
            prompt_tokens=10,
            generated=1,
            context=10,
            prefill_deadline_s=0.0,
            tpot_s=0.1,
            kv_blocks=1,
        )
    table.add("prefill", prompt_tokens=100, prefill_deadline_s=1.0, tpot_s=0.1)
    table.add("waiting", prompt_tokens=100, prefill_deadline_s=1.0, tpot_s=0.1, standard=False)
    table.add("hopeful", prompt_tokens=3500, prefill_deadline_s=0.4, tpot_s=0.1, standard=False, hopeful=True)
    table.add("too many", prompt_tokens=3500, prefill_deadline_s=0.5, tpot_s=0.1, standard=False, hopeful=True)
    # Not half of them can be served in time: the search over subsets runs out of labels, and Algorithm 1 runs too.
    candidates = [Candidate(f"{k}", 0.0, 700, Slo(0.5 + 0.01 * k, 0.1), 50, 100) for k in range(24)]
    candidates.append(Candidate("late", 0.0, 3500, Slo(0.3, 0.05), 50, 100))
    for name in names:
        policy = registry.get(name, explain_lines=True)
        policy.admission.decide(0.0, table, 4000, _MODEL, _LIMITS, candidates)
        plan = policy.batching.plan(0.0, table, 4000, _MODEL, _LIMITS)
        # Where no lines are to be drawn, one newcomer is decided in a call of its own.
        registry.get(name).admission.decide(0.0, table, 4000, _MODEL, _LIMITS, candidates[:1])
        if policy.hope is not None:
            policy.hope.decide(0.0, table, 4000, _MODEL, _LIMITS, candidates[:1])
        after_step(table, 4000, plan, 0.1, _LIMITS.block_size)
        promote(0.0, table, 4000, _MODEL, _LIMITS, policy.admission, ["waiting"])
    view = ReplicaView("replica", table, 4000, _MODEL, _LIMITS)
    for name in routing.ROUTING:
        routing.get(name).order(0.0, candidates[0], [view, view])


if __name__ == "__main__":
    warm_up(registry.names())
    print("kernels compiled")
