"""Speculation lengths per group of decodes (ALGORITHMS section 5, strict form).

A step guarantees one token only, so batches still end by the earliest deadline; accepted tokens add slack, and lengths
are chosen to raise the prompt tokens per second that are left over in expectation. Beyond the next token of each
request, plans count on a share of what is expected: over many steps and many requests chance evens out.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.batches import CAP_PACES, batch_cap
from scheduling.kernels.jit import kernel
from scheduling.kernels.rows import CTX, PACE, REM
from scheduling.kernels.steptime import CONST, PER_KV, PER_REQUEST, PER_SPEC, PER_TOKEN
from scheduling.request_table import (
    ACCEPT_RATE,
    DRAFT_SHARE,
    HAS_DRAFTS,
    MAX_REMAINING_OUTPUT,
    BoolArray,
    FloatArray,
    IntArray,
)

MAX_GROUPS = 16
MAX_LENGTH = 10
COUNTED_ON = 0.8
"""Share of the tokens expected of a step that plans count on."""


@kernel
def expected_tokens(acceptance: float, length: float) -> float:
    """Acc(sl) = (1 - a^sl) / (1 - a): tokens expected from a step that verifies `length` tokens."""
    if acceptance >= 1.0:
        return length
    return float((1.0 - acceptance**length) / (1.0 - acceptance))


@kernel
def _window(pace: float, acceptance: float, share: float, length: float) -> float:
    """Seconds of output from a step that verifies `length` tokens where it has drafts, which a share of steps has."""
    return float(pace * (1.0 - share + share * expected_tokens(acceptance, length)))


@kernel
def spare_rate(
    pace: FloatArray,
    count: FloatArray,
    kv: FloatArray,
    acceptance: FloatArray,
    share: FloatArray,
    lengths: IntArray,
    groups: int,
    lines: FloatArray,
    longest: float,
) -> float:
    """Prompt tokens per second left beside the decodes, when batches last as long as the accepted tokens allow."""
    period = longest
    deepest = 1
    for g in range(groups):
        period = min(period, _window(pace[g], acceptance[g], share[g], float(lengths[g])))
        deepest = max(deepest, lengths[g])
    best = np.inf
    for j in range(lines.shape[0]):
        used = (lines[j, CONST] + lines[j, PER_SPEC] * (deepest - 1.0)) / period
        for g in range(groups):
            tokens = 1.0 + share[g] * (lengths[g] - 1.0)
            step = count[g] * (tokens * lines[j, PER_TOKEN] + lines[j, PER_REQUEST]) + lines[j, PER_KV] * kv[g]
            used += step / _window(pace[g], acceptance[g], share[g], float(lengths[g]))
        if lines[j, PER_TOKEN] > 0.0:
            best = min(best, (1.0 - used) / lines[j, PER_TOKEN])
        elif used > 1.0:
            best = min(best, 0.0)
    return best


@kernel
def best_lengths(
    pace: FloatArray,
    count: FloatArray,
    kv: FloatArray,
    acceptance: FloatArray,
    share: FloatArray,
    groups: int,
    lines: FloatArray,
    longest: float,
    most: int,
) -> IntArray:
    """Lengths per group: enumerate the group that bounds the period and its length; the others keep up, no more.

    Plain decoding (all ones) wins ties, so speculation is off by itself where it does not pay.
    """
    best = np.ones(groups, np.int64)
    rate = spare_rate(pace, count, kv, acceptance, share, best, groups, lines, longest)
    trial = np.ones(groups, np.int64)
    for bottleneck in range(groups):
        for length in range(1, most + 1):
            if length > 1 and acceptance[bottleneck] <= 0.0:
                break
            period = min(longest, _window(pace[bottleneck], acceptance[bottleneck], share[bottleneck], float(length)))
            keeps_up = True
            for g in range(groups):
                trial[g] = 1
                if g == bottleneck:
                    trial[g] = length
                    continue
                while trial[g] < most and _window(pace[g], acceptance[g], share[g], float(trial[g])) < period:
                    trial[g] += 1
                if _window(pace[g], acceptance[g], share[g], float(trial[g])) < period:
                    keeps_up = False
            if not keeps_up:
                continue
            candidate = spare_rate(pace, count, kv, acceptance, share, trial, groups, lines, longest)
            if candidate > rate * (1.0 + 1e-9) + 1e-9:
                rate = candidate
                best[:] = trial
    return best


@kernel
def count_on(
    state: FloatArray,
    n: int,
    accept_rate: FloatArray,
    share: FloatArray,
    now: BoolArray,
    lines: FloatArray,
    caps: FloatArray,
    most: int,
    spec: IntArray,
) -> FloatArray:
    """Fill spec[i] with the tokens to verify (1 = plain), and let the state's paces be those of steps that verify them.

    Such a step serves a request for as many of its TPOTs as tokens are counted on. Returns the lines of such steps, and
    lets the caps on a batch's duration be what they were. Nothing changes where speculation does not pay. Requests, of
    those that are present, are grouped by TPOT and acceptance (in tenths); all count as decodes, which they will be.
    share: of a request's steps that will have drafts; now: whether the step at hand has. Lengths are chosen for the
    steps to come: who happens to have no drafts now must not keep those who have from verifying them.
    """
    pace = np.empty(MAX_GROUPS)
    count = np.zeros(MAX_GROUPS)
    kv = np.zeros(MAX_GROUPS)
    acceptance = np.zeros(MAX_GROUPS)
    with_drafts = np.zeros(MAX_GROUPS)
    tenth = np.zeros(MAX_GROUPS, np.int64)
    group = np.full(n, -1)
    groups = 0
    some = False
    spec[:n] = 1
    tightest = np.inf
    for i in range(n):
        if state[REM, i] < 0.0:
            continue
        tightest = min(tightest, state[PACE, i])
        mine = int(accept_rate[i] * 10.0 + 0.5)
        some = some or accept_rate[i] > 0.0
        found = -1
        for g in range(groups):
            if pace[g] == state[PACE, i] and tenth[g] == mine:
                found = g
                break
        if found < 0:
            if groups == MAX_GROUPS:
                return lines
            found = groups
            groups += 1
            pace[found] = state[PACE, i]
            tenth[found] = mine
        group[i] = found
        count[found] += 1.0
        kv[found] += state[CTX, i]
        acceptance[found] += accept_rate[i]
        with_drafts[found] += share[i]
    if not some:
        return lines
    for g in range(groups):
        acceptance[g] /= count[g]
        with_drafts[g] /= count[g]
    longest = batch_cap(tightest, caps)
    most = min(most, MAX_LENGTH)
    lengths = best_lengths(pace, count, kv, acceptance, with_drafts, groups, lines, longest, most)
    drafts, deepest, present, slowest = 0.0, 0.0, 0.0, np.inf
    for i in range(n):
        if group[i] < 0:
            continue
        present += 1.0
        if accept_rate[i] > 0.0:
            length = float(lengths[group[i]])
            if now[i]:
                spec[i] = lengths[group[i]]
            drafts += share[i] * (length - 1.0)
            deepest = max(deepest, length - 1.0)
            state[PACE, i] *= max(1.0, COUNTED_ON * _window(1.0, acceptance[group[i]], share[i], length))
        slowest = min(slowest, state[PACE, i])
    caps[CAP_PACES] *= tightest / slowest
    ahead = lines.copy()
    ahead[:, CONST] += ahead[:, PER_SPEC] * deepest
    ahead[:, PER_REQUEST] += ahead[:, PER_TOKEN] * drafts / present
    return ahead


@kernel
def speculate(
    slots: IntArray,
    state: FloatArray,
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    lines: FloatArray,
    caps: FloatArray,
    max_spec: int,
) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:
    """Return tokens to verify for each, and state, lines and caps of plans that count on what they yield."""
    n = len(slots)
    spec = np.ones(n, np.int64)
    some = False
    for i in range(n):
        some = some or floats[ACCEPT_RATE, slots[i]] > 0.0
    if max_spec <= 1 or not some:
        return spec, state, lines, caps
    accept_rate, share, now = np.zeros(n), np.ones(n), np.zeros(n, np.bool_)
    for i in range(n):
        accept_rate[i] = floats[ACCEPT_RATE, slots[i]]
        share[i] = floats[DRAFT_SHARE, slots[i]]
        now[i] = flags[HAS_DRAFTS, slots[i]] and ints[MAX_REMAINING_OUTPUT, slots[i]] > 1
    counted, ahead_caps = state.copy(), caps.copy()
    ahead = count_on(counted, n, accept_rate, share, now, lines, ahead_caps, max_spec, spec)
    return spec, counted, ahead, ahead_caps
