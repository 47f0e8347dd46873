from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.split import SeenRequest, advise, decode_batch
from scheduling.time_model import BatchShape, TimeModel
from scheduling.types import EngineLimits

MODEL = TimeModel(((0.02, 1e-4, 0.0, 1e-7, 0.0, 0.0),), source="assumed: for tests")
LIMITS = EngineLimits(2048, 64, 16, 4096, 8192)


@given(
    load=st.lists(
        st.builds(SeenRequest, st.integers(1, 6000), st.integers(0, 2000)),
        min_size=1,
        max_size=30,
    ),
    workers=st.integers(2, 12),
    tpot_s=st.floats(0.005, 0.5),
)
def test_no_other_split_leaves_the_busier_side_less_busy(load: list[SeenRequest], workers: int, tpot_s: float) -> None:
    advice = advise(load, 10.0, tpot_s, workers, MODEL, LIMITS)
    assert advice.prefill >= 1
    assert advice.decode >= 1
    assert advice.prefill + advice.decode == workers
    for prefill in range(1, workers):
        other = max(advice.prefill_work / prefill, advice.decode_work / (workers - prefill))
        assert advice.busiest <= other + 1e-12


@given(held=st.floats(1, 20_000), tpot_s=st.floats(0.005, 0.5))
def test_decode_batch_is_the_largest_that_keeps_the_time_per_token(held: float, tpot_s: float) -> None:
    batch = decode_batch(held, tpot_s, MODEL, LIMITS)

    def fits(count: int) -> bool:
        in_time = MODEL.duration_s(BatchShape(count, count, count * held)) <= tpot_s
        return in_time and count * held <= LIMITS.total_blocks * LIMITS.block_size and count <= 64

    assert batch == max([count for count in range(1, 65) if fits(count)], default=1)


def test_long_prompts_want_prefill_workers_and_long_outputs_decode_workers() -> None:
    reading = advise([SeenRequest(4000, 10)] * 20, 10.0, 0.05, 8, MODEL, LIMITS)
    writing = advise([SeenRequest(50, 1000)] * 20, 10.0, 0.05, 8, MODEL, LIMITS)
    assert reading.prefill == 7
    assert writing.decode == 7
    assert reading.ratio > 1 > writing.ratio


def test_prefill_work_is_that_of_full_batches() -> None:
    advice = advise([SeenRequest(2048, 1)] * 10, 10.0, 0.05, 2, MODEL, LIMITS)
    assert advice.prefill_work == pytest.approx(0.02 + 2048e-4)
    assert advice.decode_work == 0


def test_without_load_there_is_no_advice() -> None:
    with pytest.raises(ValueError, match="at least one request"):
        advise([], 10.0, 0.05, 2, MODEL, LIMITS)
