"""Duration of a batch and its inverse, on the lines of a time model (array of shape (lines, 6), margin included).

A batch is accumulated line by line: `load[j]` is what line j says of the batch so far.
"""

from __future__ import annotations

import math

from scheduling.kernels.jit import kernel
from scheduling.request_table import FloatArray

CONST, PER_TOKEN, PER_REQUEST, PER_KV, PER_ATTENTION, PER_SPEC = 0, 1, 2, 3, 4, 5


@kernel
def duration(lines: FloatArray, tokens: float, requests: float, kv: float) -> float:
    """Seconds of a batch without prefill attention or speculation."""
    worst = 0.0
    for j in range(lines.shape[0]):
        time = lines[j, CONST] + lines[j, PER_TOKEN] * tokens + lines[j, PER_REQUEST] * requests + lines[j, PER_KV] * kv
        worst = max(worst, time)
    return worst


@kernel
def start_load(lines: FloatArray, decodes: float, kv: float, load: FloatArray) -> float:
    """Begin a batch with this many decodes over kv tokens; returns its duration."""
    worst = 0.0
    for j in range(lines.shape[0]):
        load[j] = lines[j, CONST] + (lines[j, PER_TOKEN] + lines[j, PER_REQUEST]) * decodes + lines[j, PER_KV] * kv
        worst = max(worst, load[j])
    return worst


@kernel
def largest_chunk(lines: FloatArray, load: FloatArray, time: float, context: float, limit: float) -> float:
    """Most tokens of one more prefill, over this context, that keep the batch within time; 0 when none do."""
    best = limit
    for j in range(lines.shape[0]):
        slack = time - load[j] - lines[j, PER_REQUEST]
        if slack <= 0.0:
            return 0.0
        linear = lines[j, PER_TOKEN] + lines[j, PER_ATTENTION] * context
        twice_quadratic = lines[j, PER_ATTENTION]
        if twice_quadratic > 0.0:
            best = min(best, 2.0 * slack / (linear + math.sqrt(linear * linear + 2.0 * twice_quadratic * slack)))
        elif linear > 0.0:
            best = min(best, slack / linear)
    return math.floor(best + 1e-7)


@kernel
def add_chunk(lines: FloatArray, load: FloatArray, chunk: float, context: float) -> float:
    """Add a prefill chunk to the batch; returns the batch's duration."""
    attention = chunk * (context + 0.5 * chunk)
    worst = 0.0
    for j in range(lines.shape[0]):
        load[j] += lines[j, PER_REQUEST] + lines[j, PER_TOKEN] * chunk + lines[j, PER_ATTENTION] * attention
        worst = max(worst, load[j])
    return worst


@kernel
def add_speculation(lines: FloatArray, load: FloatArray, tokens: float, steps: float) -> float:
    """Add drafted tokens, `steps` of them for the request with most; returns the batch's duration."""
    worst = 0.0
    for j in range(lines.shape[0]):
        load[j] += lines[j, PER_TOKEN] * tokens + lines[j, PER_SPEC] * steps
        worst = max(worst, load[j])
    return worst


@kernel
def add_decode(lines: FloatArray, load: FloatArray, tokens: float, context: float) -> float:
    """Add a decode that verifies this many tokens; returns the batch's duration."""
    worst = 0.0
    for j in range(lines.shape[0]):
        load[j] += lines[j, PER_REQUEST] + lines[j, PER_TOKEN] * tokens + lines[j, PER_KV] * context
        worst = max(worst, load[j])
    return worst
