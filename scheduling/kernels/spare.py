"""Which newcomers leave enough memory and slack free for requests to come (scheduling.headroom says why)."""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.peak import peak_blocks
from scheduling.kernels.promised import alone_s
from scheduling.kernels.rows import ABSENT, CTX, DUE, EPS, OUT, REM, ROWS
from scheduling.kernels.search import check_set
from scheduling.request_table import PROMPT, VALUE, BoolArray, FloatArray, IntArray

MEMORY, MOST_MEMORY, SLACK, MOST_SLACK, SMALL = 0, 1, 2, 3, 4
"""Places of a headroom's shares: see scheduling.headroom.Headroom."""
FEWEST = 4
"""Promised residents below which their mean says too little, and everybody leaves enough."""


@kernel
def means(state: FloatArray, slots: IntArray, ints: IntArray, floats: FloatArray) -> tuple[float, float]:
    """What the residents, the first columns of the state, need in the mean: (KV tokens, prompt tokens) per value."""
    n = len(slots)
    mean_kv = 0.0
    mean_prompt = 0.0
    for i in range(n):
        worth = floats[VALUE, slots[i]]
        mean_kv += (state[CTX, i] + state[REM, i] + state[OUT, i]) / worth / n
        mean_prompt += ints[PROMPT, slots[i]] / worth / n
    return mean_kv, mean_prompt


@kernel
def kept_share(need: float, usual: float, share: float, most: float) -> float:
    """Share of memory that stays free beside a request with so much KV: `share` for each time that it exceeds usual."""
    return min(share * (need / usual - 1.0), most)


@kernel
def spares_memory(
    need: float, usual: float, peak: float, shares: FloatArray, block_size: float, capacity_blocks: float
) -> bool:
    """Whether a request that needs so much KV, where one of its value usually needs that, leaves enough memory.

    peak: blocks at the future peak of the others.
    """
    free = 1.0 - (peak + need / block_size) / capacity_blocks
    return bool(free >= kept_share(need, usual, shares[MEMORY], shares[MOST_MEMORY]))


@kernel
def latest_done_s(
    rem: float,
    ctx: float,
    left: float,
    usual: float,
    lines: FloatArray,
    max_tokens: float,
    shares: FloatArray,
    load: FloatArray,
) -> float:
    """Seconds within which all prefills must be done for a prompt to leave enough slack; infinite for small ones.

    left: seconds until its first token is due. usual: prompt tokens of a request of its value.
    """
    over = rem / usual - shares[SMALL]
    if over <= 0.0:
        return np.inf
    own = alone_s(rem, ctx, lines, max_tokens, load)
    slack = left - own
    if slack <= EPS:
        return np.inf
    # Share of the slack that must be left when all prefills are done that are promised, and its own.
    return float(own + (1.0 - min(shares[SLACK] * over, shares[MOST_SLACK])) * slack)


@kernel
def leaves_enough(
    state: FloatArray,
    slots: IntArray,
    ints: IntArray,
    floats: FloatArray,
    order: IntArray,
    now: float,
    rank: IntArray,
    items: IntArray,
    item_rem: FloatArray,
    item_value: FloatArray,
    shares: FloatArray,
    all_done: float,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    block_size: float,
    capacity_blocks: float,
) -> BoolArray:
    """Answer for each newcomer by itself.

    slots: the residents', the first columns of the state. all_done: seconds until all prefills are done if all
    newcomers come; infinite when they cannot.
    """
    enough = np.ones(len(items), np.bool_)
    if len(slots) < FEWEST or len(shares) == 0:
        return enough
    mean_kv, mean_prompt = means(state, slots, ints, floats)
    peak = peak_blocks(state, rank, block_size)
    trial = state.copy()
    scratch = np.empty((ROWS, state.shape[1]))
    chunks = np.zeros(len(order))
    load = np.empty(lines.shape[0])
    for k in range(len(items)):
        i = items[k]
        rem, ctx = item_rem[k], state[CTX, i]
        enough[k] = spares_memory(
            ctx + rem + state[OUT, i], item_value[k] * mean_kv, peak, shares, block_size, capacity_blocks
        )
        if not enough[k]:
            continue
        latest = latest_done_s(
            rem, ctx, state[DUE, i] - now, item_value[k] * mean_prompt, lines, max_tokens, shares, load
        )
        if all_done <= latest:
            continue
        trial[REM, i] = rem
        _verdict, _bind, done, _peak = check_set(
            trial, trial, order, 0, now, rank, lines, caps, max_tokens, max_requests, block_size, capacity_blocks,
            scratch, chunks, load,
        )  # fmt: skip
        trial[REM, i] = ABSENT
        enough[k] = done <= latest
    return enough
