"""Speculation: acceptance as it is measured, and plans that count on what drafts are expected to yield."""

from __future__ import annotations

import numpy as np
import pytest

from scheduling import registry
from scheduling.kernels.batches import CAP_PACES, CAPS
from scheduling.kernels.rows import ABSENT, CTX, PACE, REM, ROWS
from scheduling.kernels.speculation import COUNTED_ON, count_on
from scheduling.speculation import AcceptanceEstimator
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits
from tests.scheduling.driver import Run, drive
from tests.scheduling.test_promise import jobs, promised

OPT_7B = TimeModel(((0.0248, 6.878e-5, 0.0, 0.0, 0.0, 1.25e-6), (0.00303, 7.523e-5, 0.0, 0.0, 0.0, 3.465e-3)))


def test_acceptance_is_the_share_of_positions_that_were_tried() -> None:
    rng = np.random.default_rng(0)
    seen = AcceptanceEstimator()
    for _ in range(2000):
        right = int(np.argmin([*(rng.random(4) < 0.7), False]))
        seen.observe("chat", 0.1, 4, right)
    assert seen.rate("chat", 0.1) == pytest.approx(0.7, abs=0.07)
    assert seen.rate("chat", 0.05) == seen.rate("code", 0.1) == 0.5  # of another tier, of another class
    with pytest.raises(ValueError, match="3 of 2 drafted"):
        seen.observe("chat", 0.1, 2, 3)


def test_the_share_of_steps_with_drafts_is_learned_apart() -> None:
    seen = AcceptanceEstimator()
    for step in range(3000):
        seen.offered("chat", 0.1, step % 3 == 0)
    assert seen.share("chat", 0.1) == pytest.approx(1 / 3, abs=0.02)
    assert seen.rate("chat", 0.1) == 0.5


def test_what_did_not_pay_is_tried_again_one_day() -> None:
    seen = AcceptanceEstimator()
    for _ in range(2000):
        seen.observe("chat", 0.1, 4, 0)
    rates = [seen.rate("chat", 0.1)]
    assert 0.0 < rates[0] < 0.02
    for _ in range(20_000):
        seen.skipped("chat", 0.1)
        rates.append(seen.rate("chat", 0.1))
    assert rates == sorted(rates)
    assert rates[100] < rates[0] + 0.01
    assert 0.1 < rates[-1] < 0.5


def counted(
    accept_rate: float, share: float = 1.0, now: tuple[int, ...] = (1, 1, 1, 1, 1)
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens to verify, state, lines and caps of three decodes, a prefill, and a request that is not there."""
    state = np.zeros((ROWS, 5))
    state[PACE] = (0.1, 0.1, 0.05, 0.1, 0.02)
    state[REM] = (0.0, 0.0, 0.0, 900.0, ABSENT)
    state[CTX] = 400
    caps = np.full(CAPS, 0.2)
    caps[CAP_PACES] = 0.9
    spec = np.full(5, 7)
    rates, shares = np.full(5, accept_rate), np.full(5, share)
    lines = count_on(state, 5, rates, shares, np.array(now, dtype=np.bool_), OPT_7B.array, caps, 5, spec)
    return spec, state, lines, caps


def test_nothing_changes_where_no_draft_would_be_right() -> None:
    for rate in (0.0, 0.001):
        spec, state, lines, caps = counted(rate)
        assert (spec == 1).all()
        assert state[PACE].tolist() == [0.1, 0.1, 0.05, 0.1, 0.02]
        assert (lines == OPT_7B.array).all()
        assert caps[CAP_PACES] == 0.9


def test_steps_that_speculate_serve_for_as_many_tpots_as_tokens_are_counted_on() -> None:
    spec, state, lines, caps = counted(0.8)
    assert spec[2] > 1, "the tightest tier speculates first"
    assert spec[4] == 1
    expected = (1 - 0.8**spec) / (1 - 0.8)
    there = slice(0, 4)
    paces = np.array([0.1, 0.1, 0.05, 0.1])
    assert state[PACE, there] == pytest.approx(paces * np.maximum(1.0, COUNTED_ON * expected[there]))
    assert state[PACE, 4] == 0.02
    # A step of all four: as long as one that verifies all their tokens.
    both = (spec[there].sum(), 4.0)
    for line, plain in zip(lines, OPT_7B.array, strict=True):
        fixed, per_token, per_request = line[0], line[1], line[2]
        assert fixed + 4 * per_token + 4 * per_request == pytest.approx(
            plain[0] + both[0] * plain[1] + both[1] * plain[2] + (spec.max() - 1) * plain[5]
        )
    # A batch may last as long as before: the share of a pace shrinks as the paces grow.
    assert caps[CAP_PACES] * state[PACE, there].min() == pytest.approx(0.9 * 0.05)


def test_steps_without_drafts_count_for_one_token() -> None:
    spec, state, lines, _ = counted(0.8, share=0.5)
    always, all_state, all_lines, _ = counted(0.8)
    assert always.tolist() == [2, 2, 4, 2, 1]
    assert spec.tolist() == [2, 2, 5, 2, 1], "the tightest tier makes up for the steps without drafts"
    expected = (1 - 0.8 ** spec[2]) / (1 - 0.8)
    assert state[PACE, 2] == pytest.approx(0.05 * max(1.0, COUNTED_ON * (1 + 0.5 * (expected - 1))))
    assert state[PACE, 2] < all_state[PACE, 2]
    assert (lines.sum(axis=1) < all_lines.sum(axis=1)).any()
    _, state, _, _ = counted(0.8, share=0.0)
    assert state[PACE].tolist() == [0.1, 0.1, 0.05, 0.1, 0.02]


def test_who_has_no_drafts_now_keeps_nobody_from_verifying() -> None:
    """One plain decode of the same tier had made every step of a tier a plain one."""
    everybody, state, _, _ = counted(0.8, share=0.5)
    some, same_state, _, _ = counted(0.8, share=0.5, now=(0, 1, 1, 0, 1))
    assert everybody[2] > 1
    assert some.tolist() == [1, everybody[1], everybody[2], 1, 1]
    assert (same_state == state).all()


def overload(acceptance: float, draft_share: float = 1.0, policy: str = "slos") -> Run:
    limits = EngineLimits(2048, 256, 16, 4134, 8192, max_spec_tokens=5)
    bundle, work = registry.get(policy), jobs(3, 600, 6.0, OPT_7B)
    return drive(bundle, work, OPT_7B, limits, acceptance=acceptance, draft_share=draft_share, seed=1)


def test_drafts_of_a_few_are_verified_beside_decodes_without_any() -> None:
    plain, lookup = overload(0.0), overload(0.8, draft_share=0.3)
    tokens = sum(len(job.token_times_s) for job in lookup.jobs)
    assert lookup.accepted > 0.05 * tokens
    assert lookup.attainment() > plain.attainment()
    assert promised(lookup) > promised(plain)
    assert lookup.precision() >= 0.99


def test_more_is_promised_where_drafts_are_accepted_and_promises_are_kept() -> None:
    plain, speculating = overload(0.0), overload(0.8)
    assert promised(plain) > 200
    assert promised(speculating) > 1.03 * promised(plain)
    assert speculating.attainment() > plain.attainment()
    assert speculating.precision() >= 0.99


@pytest.mark.parametrize("name", ["slos", "dp", "edf-pb"])
def test_an_engine_that_could_speculate_but_has_no_drafts_is_planned_like_any(name: str) -> None:
    model = TimeModel(((0.02, 7e-5, 4e-4, 0.0, 0.0, 0.0),))
    could, could_not = (
        drive(registry.get(name), jobs(3, 300, 8.0, model), model, EngineLimits(2048, 256, 16, 4134, 8192, most))
        for most in (5, 1)
    )
    assert [job.token_times_s for job in could.jobs] == [job.token_times_s for job in could_not.jobs]
    assert [job.promised for job in could.jobs] == [job.promised for job in could_not.jobs]


@pytest.mark.parametrize("name", ["dp", "edf-pb"])
def test_the_papers_planner_speculates_too(name: str) -> None:
    plain, speculating = overload(0.0, policy=name), overload(0.8, policy=name)
    assert plain.spec_tokens == 0
    assert speculating.accepted > 1000
    assert promised(speculating) > 1.03 * promised(plain)
    assert speculating.attainment() > plain.attainment()
    assert speculating.precision() >= 0.98
