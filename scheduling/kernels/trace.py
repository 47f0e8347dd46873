"""What the planned batches supply over time: the lines that `slosctl explain --plot` draws."""

from __future__ import annotations

import numpy as np

from scheduling.kernels.batches import FORMED, form_batch
from scheduling.kernels.commit import commit_batch
from scheduling.kernels.jit import kernel
from scheduling.request_table import FloatArray, IntArray


@kernel
def trace_batches(
    state: FloatArray,
    order: IntArray,
    now: float,
    until: float,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    most: int,
) -> tuple[FloatArray, FloatArray]:
    """Ends of the simulated batches and tokens processed by then, cumulative; at most `most` batches."""
    n, m = state.shape[1], len(order)
    trial = state.copy()
    served = np.zeros(n, np.bool_)
    chunks = np.zeros(m)
    load = np.empty(lines.shape[0])
    nobody = np.empty(0, np.int64)
    times = np.empty(most)
    tokens = np.empty(most)
    total = 0.0
    head = 0
    count = 0
    while count < most and now < until:
        outcome, time, _end, after, _bind = form_batch(
            trial, n, order, head, m, now, False, nobody, lines, caps, max_tokens, max_requests, served, chunks, load
        )
        if outcome != FORMED or time <= 0.0:
            break
        for i in range(n):
            if served[i]:
                total += 1.0
        for at in range(head, after):
            total += chunks[at]
        head = commit_batch(trial, n, order, head, after, served, chunks)
        now += time
        times[count] = now
        tokens[count] = total
        count += 1
    return times[:count], tokens[:count]
