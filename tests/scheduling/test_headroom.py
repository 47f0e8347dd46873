"""Large requests are promised nothing while memory is short; when it is not, nobody is kept out."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling import registry
from scheduling.admission import build
from scheduling.batch_settings import DEFAULT_SETTINGS
from scheduling.headroom import ALONE, AMONG_OTHERS, NO_HEADROOM, Headroom
from scheduling.newcomers import Newcomer
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import Candidate, EngineLimits, Slo

MODEL = TimeModel(((0.02, 1e-5, 0.0, 0.0, 0.0, 0.0),))
LIMITS = EngineLimits(8192, 256, 16, 1000, 16_384)


def table_of(residents: int, tokens: int = 320) -> tuple[RequestTable, int]:
    """Residents that decode with this much KV at their end, and the blocks that they leave free."""
    table = RequestTable()
    for k in range(residents):
        table.add(
            f"r{k}", prompt_tokens=tokens - 64, generated=1, context=tokens - 64, prefill_deadline_s=0.0,
            next_deadline_s=1.0, tpot_s=0.1, remaining_output=64, kv_blocks=(tokens - 64) // 16,
        )  # fmt: skip
    return table, LIMITS.total_blocks - residents * ((tokens - 64) // 16)


def kept(table: RequestTable, free: int, news: list[Newcomer], headroom: Headroom) -> dict[str, bool]:
    """Which newcomers may be promised, by id."""
    problem = build(0.0, table, free, MODEL, LIMITS, news, DEFAULT_SETTINGS)
    yes = headroom.affordable(problem, table)
    return {new.request_id: bool(answer) for new, answer in zip(problem.newcomers, yes, strict=True)}


@given(
    st.integers(0, 45),
    st.lists(st.integers(1, 6000), min_size=1, max_size=6),
    st.floats(0.01, 0.5),
    st.sampled_from([1.0, 2.0, 5.0]),
    st.sampled_from([ALONE, AMONG_OTHERS]),
)
@settings(max_examples=300, deadline=None)
def test_whoever_may_come_so_may_the_smaller_and_the_more_valuable(
    residents: int, sizes: list[int], headroom: float, value: float, rule: Headroom
) -> None:
    table, free = table_of(residents)
    news = [Newcomer(f"{k}", rem, 9.0, 0.1, 0, 50, value) for k, rem in enumerate(sizes)]
    rule = replace(rule, memory=headroom)
    answer = kept(table, free, news, rule)
    largest = max((new.rem for new in news if answer[new.request_id]), default=0)
    assert all(answer[new.request_id] for new in news if new.rem <= largest)
    worthier = [Newcomer(new.request_id, new.rem, 9.0, 0.1, 0, 50, 2 * value) for new in news]
    more = kept(table, free, worthier, rule)
    assert all(more[key] for key, yes in answer.items() if yes)
    # With that much of memory free beside it, any size may come.
    roomy = [
        new
        for new in news
        if residents * 21 + (new.rem + 50) / 16 + 60 < (1.0 - rule.most_memory) * LIMITS.total_blocks
    ]
    assert all(answer[new.request_id] for new in roomy)


def test_more_is_kept_where_no_other_replica_can_take_the_next_one() -> None:
    policy = registry.get("slos")
    assert policy.admission_among(2) is policy.admission
    table, free = table_of(20)
    large = Candidate("l", 0.0, 1200, Slo(5.0, 0.1), 50, 100)
    among, alone = (
        policy.admission_among(replicas).decide(0.0, table, free, MODEL, LIMITS, [large]) for replicas in (2, 1)
    )
    assert among.accepted == ("l",)
    assert alone.accepted == ()
    assert "too little free" in alone.declined["l"]
    without = registry.get("dp")
    assert without.admission_among(1) is without.admission


def test_a_large_request_waits_while_memory_is_short() -> None:
    table, free = table_of(40)
    small, large = (Candidate(name, 0.0, prompt, Slo(5.0, 0.1), 50, 100) for name, prompt in (("s", 200), ("l", 1500)))
    policy = registry.get("slos")
    decision = policy.admission.decide(0.0, table, free, MODEL, LIMITS, [large, small])
    assert decision.accepted == ("s",)
    assert "too little free" in decision.declined["l"]
    assert policy.admission.decide(0.0, table, free, MODEL, LIMITS, [large]).accepted == ()
    alone = registry.get("slos", headroom=NO_HEADROOM).admission.decide(0.0, table, free, MODEL, LIMITS, [large, small])
    assert set(alone.accepted) == {"s", "l"}
    few, free = table_of(5)
    assert set(policy.admission.decide(0.0, few, free, MODEL, LIMITS, [large, small]).accepted) == {"s", "l"}
