"""`python -m scheduling.compile`: compile every kernel into the cache, so that no first request pays for it."""

from __future__ import annotations

from collections.abc import Sequence

from scheduling import registry
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import Candidate, EngineLimits, Slo

_MODEL = TimeModel(((0.02, 1e-4, 1e-5, 1e-8, 1e-9, 1e-3),))
_LIMITS = EngineLimits(2048, 64, 16, 4096, 4096)


OWN = ("slos", "edf-exact", "dp", "edf-pb")


def warm_up(names: Sequence[str] = OWN) -> None:
    """Run every kernel of these policies once; later calls in this process load or reuse compiled code."""
    table = RequestTable()
    table.add("decode", prompt_tokens=10, generated=1, context=10, prefill_deadline_s=0.0, tpot_s=0.1, kv_blocks=1)
    table.add("prefill", prompt_tokens=100, prefill_deadline_s=1.0, tpot_s=0.1)
    table.add("waiting", prompt_tokens=100, prefill_deadline_s=1.0, tpot_s=0.1, standard=False)
    # The second candidate cannot be served in time: the search over subsets runs too.
    candidates = [
        Candidate("a", 0.0, 200, Slo(1.0, 0.1), 50, 100),
        Candidate("b", 0.0, 2000, Slo(0.3, 0.05), 50, 100),
        Candidate("c", 0.0, 300, Slo(0.4, 0.05), 50, 100),
    ]
    for name in names:
        policy = registry.get(name, explain_lines=True)
        policy.admission.decide(0.0, table, 4000, _MODEL, _LIMITS, candidates)
        policy.batching.plan(0.0, table, 4000, _MODEL, _LIMITS)


if __name__ == "__main__":
    warm_up(registry.names())
    print("kernels compiled")
