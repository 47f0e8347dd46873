"""The compiled simulation of batches against the plain one, on random replicas."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scheduling.kernels import peak, rollout, rows
from scheduling.kernels.batches import CAP_AHEAD, CAP_IDLE, CAP_LONGEST, CAP_PACES, CAP_SHORTEST, CAPS
from scheduling.time_model import TimeModel
from tests.scheduling import reference
from tests.scheduling.reference import Req, Rules

MODELS = (
    TimeModel(((0.02348, 1.405e-4, -7.98e-5, 5.93e-7, 1.616e-8, 0.0),)),
    TimeModel(((0.0248, 6.878e-5, 0.0, 0.0, 0.0, 0.0), (0.00303, 7.523e-5, 0.0, 0.0, 0.0, 0.0))),
    TimeModel(((0.010, 1e-3, 1e-3, 1e-5, 1e-7, 0.0), (0.015, 5e-4, 0.0, 0.0, 0.0, 0.0)), margin=1.1),
)

decodes = st.builds(
    Req,
    rem=st.just(0),
    due=st.integers(1, 60).map(lambda k: k * 0.0137),
    pace=st.sampled_from([0.05, 0.1, 0.15]),
    ctx=st.integers(1, 3000),
    out=st.integers(1, 400),
)
prefills = st.builds(
    Req,
    rem=st.integers(1, 3000),
    due=st.integers(1, 60).map(lambda k: k * 0.0311),
    pace=st.sampled_from([0.05, 0.1, 0.15]),
    ctx=st.integers(0, 2000),
    out=st.integers(1, 400),
)
replicas = st.tuples(st.lists(decodes, max_size=8), st.lists(prefills, max_size=5))
rules = st.builds(
    Rules,
    model=st.sampled_from(MODELS),
    max_tokens=st.sampled_from([64, 512, 2048]),
    max_requests=st.sampled_from([4, 64]),
    idle_cap=st.sampled_from([0.1, 0.4]),
    paces=st.sampled_from([1.0, 2.0]),
    longest=st.sampled_from([0.1, 0.25]),
    shortest=st.just(0.03),
)


def arrays(requests: list[Req]) -> np.ndarray:
    state = np.empty((rows.ROWS, len(requests)))
    for i, r in enumerate(requests):
        state[:, i] = (r.rem, r.due, r.pace, r.ctx, r.out)
    return state


def caps(r: Rules) -> np.ndarray:
    array = np.empty(CAPS)
    array[CAP_AHEAD] = np.inf
    array[CAP_IDLE], array[CAP_PACES], array[CAP_LONGEST], array[CAP_SHORTEST] = (
        r.idle_cap,
        r.paces,
        r.longest,
        r.shortest,
    )
    return array


def compiled(requests: list[Req], r: Rules, now: float = 0.0) -> int:
    state = arrays(requests)
    n = len(requests)
    order, m = rows.prefill_order(state, n, 0)
    lines = r.model.array
    verdict, _, _ = rollout.feasible_from(
        state, n, order, 0, m, now, lines, caps(r), float(r.max_tokens), float(r.max_requests),
        np.zeros(m), np.empty(len(lines)),
    )  # fmt: skip
    return verdict


@settings(max_examples=800, deadline=None)
@given(replicas, rules)
def test_feasibility_equals_reference(replica: tuple[list[Req], list[Req]], r: Rules) -> None:
    requests = replica[0] + replica[1]
    assume(len({q.due for q in requests}) == len(requests))
    assert (compiled(requests, r) == rollout.FEASIBLE) == reference.feasible(requests, 0.0, r)


def test_whoever_ends_leaves_the_others_feasible() -> None:
    """The batch after this one ends when `hurried` would need a second token, and without it later, for more decodes.

    All of these now would leave the prompt, which is due when this batch ends, no time for its last tokens.
    """
    r = Rules(MODELS[0], 2048, 64, idle_cap=0.2, paces=3.0, longest=0.2, shortest=0.03)
    hurried = Req(0, due=0.24, pace=0.1, ctx=200, out=100)
    crowd = [Req(0, due=0.35 + 0.001 * k, pace=0.1, ctx=1500, out=100) for k in range(20)]
    prompt = Req(1100, due=0.2, pace=0.1, ctx=0, out=100)
    for requests in ([hurried, *crowd, prompt], [*crowd, prompt]):
        assert compiled(requests, r) == rollout.FEASIBLE
        assert reference.feasible(requests, 0.0, r)


@settings(max_examples=500, deadline=None)
@given(replicas, st.sampled_from([1, 16, 128]))
def test_peak_memory_equals_reference(replica: tuple[list[Req], list[Req]], block: int) -> None:
    requests = replica[0] + replica[1]
    state = arrays(requests)
    rank = peak.by_remaining_output(state, len(requests))
    assert np.isclose(peak.peak_blocks(state, rank, float(block)), reference.peak_blocks(requests, block))


@settings(max_examples=500, deadline=None)
@given(replicas, rules)
def test_sustainable_equals_reference(replica: tuple[list[Req], list[Req]], r: Rules) -> None:
    requests = replica[0] + replica[1]
    state = arrays(requests)
    rank = peak.by_remaining_output(state, len(requests))
    limit = float(min(r.max_tokens, r.max_requests))
    assert peak.sustainable(state, rank, r.model.array, limit) == reference.sustainable(requests, r)


def test_later_deadlines_change_nothing_before_the_checkpoint() -> None:
    """A label goes on from its checkpoint: the result is that of simulating the larger set from the start."""
    rng = np.random.default_rng(5)
    resumed_cases = {True: 0, False: 0}
    for _ in range(1500):
        decoding = [
            Req(0, 0.05 + 0.1 * rng.random(), float(rng.choice([0.05, 0.1])), int(rng.integers(1, 2000)), 100)
            for _ in range(rng.integers(0, 12))
        ]
        count = int(rng.integers(2, 6))
        dues = np.sort(rng.random(count)) * 0.3 * count + 0.12
        waiting = [Req(int(rng.integers(50, 1500)), float(due), 0.1, 0, 100) for due in dues]
        requests = decoding + waiting
        r = Rules(MODELS[int(rng.integers(3))], 2048, 64, 0.2, 2.0, 0.2, 0.03)
        n = len(requests)
        full = arrays(requests)
        order, m = rows.prefill_order(full, n, 0)
        stop = int(rng.integers(1, m))
        late = order[stop:m]
        state = full.copy()
        state[rows.REM, late] = rows.ABSENT
        engine = (r.model.array, caps(r), float(r.max_tokens), float(r.max_requests))
        scratch = (np.zeros(m), np.empty(len(r.model.array)))
        verdict, clock, head, _ = rollout.run_prefills(state, n, order, 0, m, stop, 0.0, *engine, *scratch)
        if verdict != rollout.FEASIBLE:
            continue
        state[rows.REM, late] = full[rows.REM, late]
        resumed, _, _ = rollout.feasible_from(state, n, order, head, m, clock, *engine, *scratch)
        assert (resumed == rollout.FEASIBLE) == (compiled(requests, r) == rollout.FEASIBLE)
        resumed_cases[resumed == rollout.FEASIBLE] += 1
    assert min(resumed_cases.values()) > 40, resumed_cases
