from __future__ import annotations

import pytest

from scheduling import registry
from scheduling.batch_settings import DEFAULT_SETTINGS
from scheduling.pairs import Route, Routes, TransferModel, decide_pair, next_step_s, taking_in_s
from scheduling.policy import AdmissionPolicy, ReplicaView
from scheduling.request_table import RequestTable
from scheduling.routing import get as get_routing
from scheduling.time_model import TimeModel
from scheduling.types import Candidate, EngineLimits, Slo

MODEL = TimeModel(((0.02, 1e-4, 0.0, 0.0, 0.0, 0.0),), source="assumed: for tests")
LIMITS = EngineLimits(max_batch_tokens=512, max_batch_requests=64, block_size=16, total_blocks=200, max_model_len=4096)
TRANSFER = TransferModel(latency_s=0.01, per_token_s=5e-5)


@pytest.fixture(params=["slos", "edf-exact"])
def admission(request: pytest.FixtureRequest) -> AdmissionPolicy:
    return registry.get(request.param).admission


def view(name: str, role: str, blocks: int = 200) -> ReplicaView:
    return ReplicaView(name, RequestTable(), blocks, MODEL, LIMITS, role)


def candidate(name: str, ttft_s: float, prompt: int = 400, output: int = 50) -> Candidate:
    return Candidate(name, 0.0, prompt, Slo(ttft_s, 0.1), output, output)


def least_ttft_s(prompt: int) -> float:
    """Prefill alone, the transfer, and a step after the longest one that may be under way when the KV comes."""
    return MODEL.zero_load_prefill_s(prompt, 512) + TRANSFER.duration_s(prompt) + (3 + 1) * 0.0201


def test_the_transfer_and_the_decode_sides_steps_count_against_the_deadline(admission: AdmissionPolicy) -> None:
    need_s = least_ttft_s(400)
    prefill, decode = view("p", "prefill"), view("d", "decode")
    enough = decide_pair(0.0, prefill, decode, TRANSFER, admission, [candidate("a", need_s + 0.005)])
    assert enough.accepted == ("a",)
    short = decide_pair(0.0, prefill, decode, TRANSFER, admission, [candidate("a", need_s - 0.005)])
    assert short.accepted == ()
    assert short.declined["a"].startswith("prefill on p")
    slower = TRANSFER.scaled(2.0)
    assert decide_pair(0.0, prefill, decode, slower, admission, [candidate("a", need_s + 0.005)]).accepted == ()


def test_both_sides_must_have_room(admission: AdmissionPolicy) -> None:
    small = view("d", "decode", blocks=10)
    decision = decide_pair(0.0, view("p", "prefill"), small, TRANSFER, admission, [candidate("a", 5.0)])
    assert decision.accepted == ()
    assert decision.declined["a"].startswith("decode on d")
    assert "KV memory" in decision.declined["a"]


def test_the_prefill_side_needs_no_memory_for_the_output(admission: AdmissionPolicy) -> None:
    prefill = view("p", "prefill", blocks=30)  # 480 tokens
    decision = decide_pair(
        0.0, prefill, view("d", "decode"), TRANSFER, admission, [candidate("a", 5.0, prompt=450, output=500)]
    )
    assert decision.accepted == ("a",)


def test_a_cached_prefix_is_no_prefill_work(admission: AdmissionPolicy) -> None:
    ttft_s = least_ttft_s(400) - 0.02
    cold, decode = view("p", "prefill"), view("d", "decode")
    warm = ReplicaView("p", RequestTable(), 200, MODEL, LIMITS, "prefill", {"a": 384})
    assert decide_pair(0.0, cold, decode, TRANSFER, admission, [candidate("a", ttft_s)]).accepted == ()
    assert decide_pair(0.0, warm, decode, TRANSFER, admission, [candidate("a", ttft_s)]).accepted == ("a",)


def test_what_one_side_declines_is_named_and_the_rest_is_kept(admission: AdmissionPolicy) -> None:
    wanted = [candidate("fits", 1.0, prompt=300), candidate("hasty", 0.05), candidate("fits-too", 2.0, prompt=300)]
    decision = decide_pair(0.0, view("p", "prefill"), view("d", "decode"), TRANSFER, admission, wanted)
    assert set(decision.accepted) == {"fits", "fits-too"}
    assert set(decision.declined) == {"hasty"}
    assert set(decision.explain) == {"prefill", "transfer_s", "taking_in_s", "decode"}


def test_a_fuller_decode_side_takes_longer_steps() -> None:
    kv_model = TimeModel(((0.02, 1e-4, 1e-4, 1e-6, 0.0, 0.0),))
    table = RequestTable()
    empty = next_step_s(ReplicaView("d", table, 100, kv_model, LIMITS))
    for index in range(8):
        slot = table.add(f"r{index}", prompt_tokens=500, prefill_deadline_s=0.0, tpot_s=0.1)
        table.prefilled(slot, 500)
    full = next_step_s(ReplicaView("d", table, 100, kv_model, LIMITS))
    assert full - empty == pytest.approx(8 * 2e-4 + 4000 * 1e-6)


def test_kv_waits_for_the_longest_step_that_may_be_under_way() -> None:
    table = RequestTable()
    slot = table.add("r", prompt_tokens=100, prefill_deadline_s=0.0, tpot_s=0.05)
    table.prefilled(slot, 100)
    decode = view("d", "decode")._replace(table=table)
    assert taking_in_s(decode) == pytest.approx(DEFAULT_SETTINGS.paces * 0.05 + next_step_s(decode))
    assert taking_in_s(view("d", "decode")) == pytest.approx((3 + 1) * 0.0201)


def test_a_factor_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        TRANSFER.scaled(0.0)


def test_a_pair_promises_from_the_end_of_the_steps_under_way(admission: AdmissionPolicy) -> None:
    prefill, decode = view("p", "prefill"), view("d", "decode")
    busy = prefill._replace(as_of_s=1.0)
    assert decide_pair(0.0, prefill, decode, TRANSFER, admission, [candidate("a", 1.0)]).accepted == ("a",)
    assert decide_pair(0.0, busy, decode, TRANSFER, admission, [candidate("a", 1.0)]).accepted == ()
    assert decide_pair(0.0, busy, decode, TRANSFER, admission, [candidate("a", 2.0)]).accepted == ("a",)
    late = decode._replace(as_of_s=1.5)
    assert decide_pair(0.0, prefill, late, TRANSFER, admission, [candidate("a", 1.0)]).accepted == ()


def test_pairs_take_the_least_loaded_decode_workers_and_single_workers_come_last() -> None:
    full, empty = view("d-full", "decode", blocks=20), view("d-empty", "decode")
    views = [view("both", "both"), view("p", "prefill"), full, empty, view("p2", "prefill")]
    routes = Routes(views)
    assert routes.ordered == [Route(0), Route(3, 1), Route(2, 4)]
    assert routes.last == [Route(2, 1), Route(3, 4), Route(3), Route(2)]
    one = Routes(views[:1])
    assert (one.ordered, one.last) == ([Route(0)], [])
    alone = Routes(views, lambda prefill, decode: False)
    assert (alone.ordered, alone.last) == ([Route(0), Route(3), Route(2), Route(1), Route(4)], [])


def test_whoever_holds_the_prompt_and_decodes_is_asked_first() -> None:
    asking = candidate("a", 1.0, prompt=400)
    cold = [view("p", "prefill"), view("d", "decode"), view("d2", "decode")]
    routes = Routes(cold)
    sequential = get_routing("sequential")
    assert routes.ask_order(0.0, asking, cold, sequential)[0] == Route(1, 0)
    warm = [cold[0], cold[1], cold[2]._replace(cached_tokens={"a": 320})]
    order = routes.ask_order(0.0, asking, warm, sequential)
    assert order[:2] == [Route(2), Route(1, 0)]
    assert len(order) == len(set(order))
    little = [cold[0]._replace(cached_tokens={"a": 400}), cold[1], cold[2]._replace(cached_tokens={"a": 32})]
    assert routes.ask_order(0.0, asking, little, sequential)[0] == Route(1, 0)
