"""What the residents will need when they grow: the future peak of KV memory and of decode load.

Both walk the residents from the longest remaining output to the shortest: at the moment the k-th ends, those before
it still hold their KV, each grown by the k-th's remaining output. `rank` is that order; it may be taken once and used
for many sets of the same requests, because all outputs shrink together.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.rows import CTX, EPS, OUT, PACE, REM
from scheduling.kernels.steptime import CONST, PER_KV, PER_REQUEST, PER_TOKEN
from scheduling.request_table import FloatArray, IntArray


@kernel
def by_remaining_output(state: FloatArray, n: int) -> IntArray:
    """Indices, longest remaining output first."""
    return np.argsort(-state[OUT, :n])


@kernel
def peak_blocks(state: FloatArray, rank: IntArray, block_size: float) -> float:
    """Most KV blocks that the set holds together at any time to come, every request rounded up to whole blocks."""
    base = 0.0
    count = 0.0
    peak = 0.0
    for i in rank:
        if state[REM, i] < 0.0:
            continue
        base += state[CTX, i] + state[REM, i]
        count += 1.0
        peak = max(peak, base + count * state[OUT, i] + count * (block_size - 1.0))
    return peak / block_size


@kernel
def sustainable(state: FloatArray, rank: IntArray, lines: FloatArray, max_requests: float) -> bool:
    """Whether the set can decode side by side until all end (prefills count as if they were done).

    In every span of the tightest TPOT, a request with a looser one gets its share of a token: looser tiers skip
    batches. Checked now and at every end of a request, with the KV that is read then.
    """
    tightest = np.inf
    kv = 0.0
    count = 0.0
    for i in rank:
        if state[REM, i] >= 0.0:
            tightest = min(tightest, state[PACE, i])
            kv += state[CTX, i] + state[REM, i] + state[OUT, i]
            count += 1.0
    if count == 0.0 or (count <= max_requests and _fits(lines, count, kv, tightest)):
        return True
    tightest = np.inf
    rate = 0.0
    read = 0.0
    grown = 0.0
    for i in rank:
        if state[REM, i] < 0.0:
            continue
        if state[OUT, i] < grown and not _shared(rate, read + grown * rate, tightest, lines, max_requests):
            return False
        grown = state[OUT, i]
        tightest = min(tightest, state[PACE, i])
        rate += 1.0 / state[PACE, i]
        read += (state[CTX, i] + state[REM, i]) / state[PACE, i]
    if not _shared(rate, read + grown * rate, tightest, lines, max_requests):
        return False
    return _shared(rate, read, tightest, lines, max_requests)


@kernel
def _shared(rate: float, read: float, tightest: float, lines: FloatArray, max_requests: float) -> bool:
    """Whether the tokens (and KV) due in one span of the tightest TPOT fit into a batch of that length."""
    if rate * tightest > max_requests + EPS:
        return False
    return _fits(lines, rate * tightest, read * tightest, tightest)


@kernel
def _fits(lines: FloatArray, decodes: float, kv: float, time: float) -> bool:
    for j in range(lines.shape[0]):
        load = lines[j, CONST] + (lines[j, PER_TOKEN] + lines[j, PER_REQUEST]) * decodes + lines[j, PER_KV] * kv
        if load > time + EPS:
            return False
    return True
