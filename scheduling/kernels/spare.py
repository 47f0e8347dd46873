"""Which newcomers leave enough memory and slack free for requests to come (scheduling.headroom says why)."""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.peak import peak_blocks
from scheduling.kernels.promised import alone_s
from scheduling.kernels.rows import ABSENT, CTX, DUE, EPS, OUT, REM, ROWS
from scheduling.kernels.search import check_set
from scheduling.request_table import BoolArray, FloatArray, IntArray

MEMORY, MOST_MEMORY, SLACK, MOST_SLACK = 0, 1, 2, 3
"""Places of a headroom's shares: see scheduling.headroom.Headroom."""


@kernel
def leaves_enough(
    state: FloatArray,
    residents: int,
    worth: FloatArray,
    prompts: FloatArray,
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

    worth, prompts: value and prompt tokens of the residents, the first columns of the state. all_done: seconds until
    all prefills are done if all newcomers come; infinite when they cannot.
    """
    n = state.shape[1]
    mean_kv = 0.0
    mean_prompt = 0.0
    for i in range(residents):
        mean_kv += (state[CTX, i] + state[REM, i] + state[OUT, i]) / worth[i] / residents
        mean_prompt += prompts[i] / worth[i] / residents
    peak = peak_blocks(state, rank, block_size)
    trial = state.copy()
    scratch = np.empty((ROWS, n))
    chunks = np.zeros(len(order))
    load = np.empty(lines.shape[0])
    enough = np.zeros(len(items), np.bool_)
    for k in range(len(items)):
        i = items[k]
        need = state[CTX, i] + item_rem[k] + state[OUT, i]
        free = 1.0 - (peak + need / block_size) / capacity_blocks
        enough[k] = free >= min(shares[MEMORY] * (need / (item_value[k] * mean_kv) - 1.0), shares[MOST_MEMORY])
        over = item_rem[k] / (item_value[k] * mean_prompt) - 1.0
        if not enough[k] or over <= 0.0:
            continue
        own = alone_s(item_rem[k], state[CTX, i], lines, max_tokens, load)
        slack = state[DUE, i] - now - own
        # Share of the slack that must be left when all prefills are done that are promised, and its own.
        latest = own + (1.0 - min(shares[SLACK] * over, shares[MOST_SLACK])) * slack
        if slack <= EPS or all_done <= latest:
            continue
        trial[REM, i] = item_rem[k]
        _verdict, _bind, done, _peak = check_set(
            trial, trial, order, 0, now, rank, lines, caps, max_tokens, max_requests, block_size, capacity_blocks,
            scratch, chunks, load,
        )  # fmt: skip
        trial[REM, i] = ABSENT
        enough[k] = done <= latest
    return enough
