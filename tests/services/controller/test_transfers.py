"""Transfer times of a pair are learned, and forgotten."""

from __future__ import annotations

import pytest

from scheduling.pairs import TransferModel
from services.controller import transfers
from services.controller.transfers import TransferTimes


def test_a_pair_is_as_slow_as_its_slower_hand_overs() -> None:
    times = TransferTimes()
    guess = TransferModel()
    assert times.model("p", "d") == guess
    for share in range(1, 11):
        times.observe("p", "d", 1000, guess.duration_s(1000) * share)
    assert times.model("p", "d").duration_s(500) == pytest.approx(guess.duration_s(500) * 10)
    assert times.model("p", "other") == guess


def test_a_pair_that_was_slow_long_ago_is_tried_again() -> None:
    now_s = [0.0]
    times = TransferTimes(lambda: now_s[0])
    times.observe("p", "d", 1000, 60.0)
    assert times.model("p", "d").duration_s(1000) == pytest.approx(60.0)
    now_s[0] = transfers.REMEMBERED_S + 0.1
    assert times.model("p", "d") == TransferModel()
