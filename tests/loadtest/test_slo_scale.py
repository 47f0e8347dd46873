from __future__ import annotations

import pytest

from loadtest import slo_scale
from loadtest.load import Target, tpots_ms
from scheduling.classes import APPLICATION_CLASSES
from scheduling.time_model import TimeModel


def target(scale: float) -> Target:
    return Target("m", 2048, "slos", 1, True, "", APPLICATION_CLASSES, (), scale)


def test_the_papers_gpu_has_scale_one_and_a_slower_engine_more() -> None:
    reference = slo_scale.reference_step_s()
    assert reference == pytest.approx(0.0249, abs=0.0005)
    slow = TimeModel(((2 * reference, 0.0, 0.0, 0.0, 0.0, 0.0),), margin=1.5)
    fast = TimeModel(((reference / 4, 0.0, 0.0, 0.0, 0.0, 0.0),))
    assert slo_scale.scale_for([slow]) == pytest.approx(2.0)
    assert slo_scale.scale_for([fast, slow]) == pytest.approx(2.0)
    assert slo_scale.scale_for([fast]) == pytest.approx(0.25)


def test_without_a_time_model_the_user_is_told_what_to_do() -> None:
    with pytest.raises(ValueError, match="--slo-scale"):
        slo_scale.scale_for([])


@pytest.mark.parametrize(
    ("application", "round_", "tpot_ms", "thinking_ms"),
    [
        ("chatbot", "", 200.0, None),
        ("coding", "", 100.0, None),
        ("tool", "inner", 100.0, None),
        ("tool", "last", 200.0, None),
        ("reasoning", "", 200.0, 100.0),
    ],
)
def test_tight_and_loose_keep_their_ratio(
    application: str, round_: str, tpot_ms: float, thinking_ms: float | None
) -> None:
    tpot, thinking = tpots_ms(target(2.0), application, round_)
    assert tpot == pytest.approx(tpot_ms)
    assert thinking == (None if thinking_ms is None else pytest.approx(thinking_ms))


def test_at_scale_one_the_class_itself_decides() -> None:
    assert tpots_ms(target(1.0), "coding", "") == (None, None)
