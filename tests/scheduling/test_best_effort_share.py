"""What best-effort work gets beside promised work: its turns, lulls, and memory that anybody else may have."""

from __future__ import annotations

import pytest

from scheduling import registry
from scheduling.batch_settings import DEFAULT_SETTINGS, BatchSettings
from scheduling.policy import BatchPlan
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits
from tests.scheduling.residents import decode, prefill

MODEL = TimeModel(((0.02, 1e-4, 0.0, 0.0, 0.0, 0.0),))
LIMITS = EngineLimits(8192, 256, 16, 1000, 16_384)
LATER_S = DEFAULT_SETTINGS.turn_s + 1.0
"""Not in a turn."""


def waits(table: RequestTable) -> int:
    return prefill(table, "waits", 0.1, 8000, standard=False, arrival_s=-1000.0)


def plan(table: RequestTable, now_s: float = 0.0, free: int = 800, settings: BatchSettings | None = None) -> BatchPlan:
    return registry.get("slos", settings=settings).batching.plan(now_s, table, free, MODEL, LIMITS)


@pytest.mark.parametrize("residents", [2, 40])
def test_a_turn_lengthens_a_batch_by_little(residents: int) -> None:
    """A batch of promised work grows by `beside` at most, but by something; out of turn by nothing."""
    table = RequestTable()
    for k in range(residents):
        decode(table, f"r{k}", LATER_S + 1.0)
    alone_s = plan(table).predicted_s
    slot = waits(table)
    in_turn = plan(table)
    assert in_turn.prefill_slots.tolist() == [slot], "it goes on, however little"
    assert 0.0 < in_turn.predicted_s / alone_s - 1.0 <= DEFAULT_SETTINGS.beside + 1e-9
    assert plan(table, LATER_S).prefill_slots.tolist() == []
    always = plan(table, LATER_S, settings=BatchSettings(turn_every_s=0.0))
    assert always.prefill_slots.tolist() == [slot]


def test_turns_come_again() -> None:
    table = RequestTable()
    slot = waits(table)
    share, until_s, now_s = 0, 3 * DEFAULT_SETTINGS.turn_every_s, 0.0
    steps = 0
    decode(table, "r", 1.0)
    while now_s < until_s:
        table.next_deadline_s[table.slot("r")] = now_s + 1.0
        got = plan(table, now_s)
        share += slot in got.prefill_slots
        steps += 1
        now_s += got.predicted_s
    floor = DEFAULT_SETTINGS.turn_s / DEFAULT_SETTINGS.turn_every_s
    assert floor * steps * 0.8 <= share <= floor * steps * 1.3 + 3


def test_a_lull_is_for_best_effort_work() -> None:
    """Every decode far ahead, no prompt, free memory: then it may take what batches of its own last."""
    far_s = LATER_S + DEFAULT_SETTINGS.lull_s + 0.1
    table = RequestTable()
    decode(table, "r0", far_s)
    decode(table, "r1", far_s)
    alone_s = plan(table, LATER_S).predicted_s
    slot = waits(table)
    got = plan(table, LATER_S)
    assert got.prefill_slots.tolist() == [slot]
    assert got.predicted_s - alone_s > 0.9 * DEFAULT_SETTINGS.filler_s
    assert plan(table, LATER_S, free=250).prefill_slots.tolist() == [], "memory is short"
    decode(table, "near", LATER_S + 1.0)
    assert plan(table, LATER_S).prefill_slots.tolist() == [], "a decode is near its deadline"


def test_best_effort_work_out_of_turn_never_delays_a_prompt() -> None:
    table = RequestTable()
    decode(table, "r", LATER_S + 100.0)
    prompt = prefill(table, "p", LATER_S + 5.0, 600)
    waits(table)
    assert plan(table, LATER_S).prefill_slots.tolist() == [prompt]


def test_memory_of_best_effort_work_is_free_to_all_others() -> None:
    """How far decodes run ahead is decided by the memory that promises could have, whoever sits on it."""
    table = RequestTable()
    decode(table, "far", LATER_S + 1.5 * DEFAULT_SETTINGS.ahead_s)
    for k in range(2):
        prefill(table, f"p{k}", LATER_S + 0.6, 2000, remaining_output=16)
    assert plan(table, LATER_S, free=900).decode_slots.tolist() == [], "the prompts need the time"
    assert plan(table, LATER_S, free=150).decode_slots.tolist() == [0], "who ends early frees memory"
    decode(table, "b", 0.0, context=9600, standard=False)
    assert plan(table, LATER_S, free=150).decode_slots.tolist() == []


def test_decodes_left_out_for_a_chunk_run_when_it_finds_no_memory() -> None:
    """A hopeful prompt has no time for decodes beside it, and no memory either: whoever could run is not left idle."""
    table = RequestTable()
    decodes = [decode(table, f"r{k}", LATER_S + 0.5, 0.1, 500, remaining_output=2) for k in range(20)]
    hopeful = prefill(
        table, "h", LATER_S + 0.181, 3200, remaining_output=2, standard=False, hopeful=True, context=1600,
        prefill_remaining=1600, kv_blocks=100,
    )  # fmt: skip
    got = plan(table, LATER_S, free=40)
    assert got.preempt_slots.tolist() == [hopeful]
    assert got.decode_slots.tolist() == decodes
