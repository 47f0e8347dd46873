"""The lines of a plan: cumulative, equally long, and the budget covers the demand of an admitted set."""

from __future__ import annotations

from typing import cast

from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduling import registry
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import Candidate, EngineLimits, Slo

MODEL = TimeModel(((0.02, 1e-4, 0.0, 1e-8, 0.0, 0.0),))
LIMITS = EngineLimits(2048, 64, 16, 2000, 8192)


@given(st.integers(0, 12), st.lists(st.integers(20, 3000), min_size=1, max_size=6))
@example(0, [1801, 799])  # the second batch ends on the deadline, but for rounding
@settings(max_examples=60, deadline=None)
def test_supply_covers_demand(decodes: int, prompts: list[int]) -> None:
    table = RequestTable()
    for k in range(decodes):
        table.add(f"r{k}", prompt_tokens=100, generated=1, context=100, prefill_deadline_s=0.0, next_deadline_s=0.1,
                  tpot_s=0.1, kv_blocks=7)  # fmt: skip
    news = [Candidate(f"n{k}", 0.0, prompt, Slo(0.3 + 0.2 * k, 0.1), 50, 100) for k, prompt in enumerate(prompts)]
    decision = registry.get("slos", explain_lines=True).admission.decide(0.0, table, 1900, MODEL, LIMITS, news)
    lines = cast("dict[str, list[float]]", decision.explain["lines"])
    times, budget, demand = lines["time_s"], lines["budget_tokens"], lines["demand_tokens"]
    assert len(times) == len(budget) == len(demand)
    for line in (times, budget, demand):
        assert line == sorted(line)
    accepted = sum(new.prompt_tokens for new in news if new.request_id in decision.accepted)
    assert demand[-1] >= accepted
    short = [(t, b, d) for t, b, d in zip(times, budget, demand, strict=True) if b < d and t < times[-1]]
    assert not short, short[:3]
