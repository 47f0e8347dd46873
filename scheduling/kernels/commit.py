"""What a batch that was formed leaves behind: the state after it."""

from __future__ import annotations

from scheduling.kernels.decodes import add_decode_of, advance
from scheduling.kernels.jit import kernel
from scheduling.kernels.rows import CTX, DUE, OUT, PACE, REM
from scheduling.request_table import BoolArray, FloatArray, IntArray


@kernel
def commit_batch(
    state: FloatArray, n: int, order: IntArray, head: int, after: int, served: BoolArray, chunks: FloatArray
) -> int:
    """Apply a formed batch to the state; returns the new head of the prefill order."""
    for i in range(n):
        if served[i]:
            state[DUE, i] += state[PACE, i]
            state[CTX, i] += 1.0
            state[OUT, i] = max(state[OUT, i] - 1.0, 1.0)
    return commit_chunks(state, order, head, after, chunks)


@kernel
def commit_chunks(state: FloatArray, order: IntArray, head: int, after: int, chunks: FloatArray) -> int:
    """Apply the chunks of a formed batch; returns the new head of the prefill order."""
    new_head = head
    for at in range(head, after):
        i = order[at]
        if state[REM, i] <= 0.0:
            new_head = at + 1
            continue
        state[REM, i] -= chunks[at]
        state[CTX, i] += chunks[at]
        if state[REM, i] == 0.0:
            # In time, so the token after it is due one TPOT after this one's due time.
            state[DUE, i] += state[PACE, i]
            state[OUT, i] = max(state[OUT, i] - 1.0, 1.0)
            new_head = at + 1
    return new_head


@kernel
def commit_live_batch(
    live: FloatArray,
    who: IntArray,
    count: int,
    state: FloatArray,
    order: IntArray,
    head: int,
    after: int,
    chunks: FloatArray,
) -> tuple[int, int]:
    """Apply a formed batch; returns (new head of the prefill order, how many decode now)."""
    advance(live, count)
    new_head = commit_chunks(state, order, head, after, chunks)
    for at in range(head, after):
        i = order[at]
        if state[REM, i] == 0.0 and chunks[at] > 0.0:
            count = add_decode_of(state, i, live, who, count)
    return new_head, count
