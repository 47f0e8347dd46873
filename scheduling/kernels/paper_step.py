"""One batch of Algorithm 2 for the paper's planner: size by the earliest deadline, looser requests skip batches.

What prefills leave of the batch goes to decodes ahead of their deadline and to best-effort work. Decodes verify as many
tokens as their tier's length says (ALGORITHMS section 5); a batch still ends by the earliest deadline of one token.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.batches import CAP_PACES, CAPS, FORMED, form_batch
from scheduling.kernels.filler import fill_best_effort
from scheduling.kernels.jit import kernel
from scheduling.kernels.memory import make_room, room_for_drafts
from scheduling.kernels.promised import keep_promised
from scheduling.kernels.rows import CTX, DUE, EPS, REM, prefill_order
from scheduling.kernels.shed import form_anything
from scheduling.kernels.speculation import speculate
from scheduling.kernels.steptime import add_decode, add_speculation
from scheduling.request_table import MAX_REMAINING_OUTPUT, BoolArray, FloatArray, IntArray


@kernel
def plan_paper_step(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    now: float,
    free_blocks: int,
    lines: FloatArray,
    margin: float,
    settings: FloatArray,
    longest: float,
    max_tokens: float,
    max_requests: float,
    block_size: int,
    total_blocks: int,
    max_spec: int,
) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray, IntArray, float]:
    """Return (decode slots, tokens to verify for each, prefill slots, their tokens, preempted, relegated, seconds)."""
    load = np.empty(lines.shape[0])
    trial = np.empty(lines.shape[0])
    slots, state, missed = keep_promised(ints, floats, flags, used, now, lines / margin, max_tokens, load)
    n = len(slots)
    relegated = np.zeros(used, np.bool_)
    for slot in missed:
        relegated[slot] = True
    preempted = np.zeros(used, np.bool_)
    decode_slots = np.empty(used, np.int64)
    prefill_slots = np.empty(used, np.int64)
    prefill_tokens = np.empty(used, np.int64)
    decodes = 0
    prefills = 0
    order, m = prefill_order(state, n, 0)
    served = np.zeros(n, np.bool_)
    chunks = np.zeros(m)
    caps = np.full(CAPS, longest)
    caps[CAP_PACES] = 0.0
    spec, _counted, _lines, _caps = speculate(slots, state, ints, floats, flags, lines, caps, max_spec)
    time, end, after = 0.0, now + longest, 0
    if n > 0:
        outcome, time, end, after, _bind = form_batch(
            state, n, order, 0, m, now, False, spec, lines, caps, max_tokens, max_requests, served, chunks, load
        )
        if outcome != FORMED and (spec > 1).any():
            spec[:] = 1
            outcome, time, end, after, _bind = form_batch(
                state, n, order, 0, m, now, False, spec, lines, caps, max_tokens, max_requests, served, chunks, load
            )
        if outcome != FORMED:
            after, time, end = form_anything(
                state, n, order, m, lines, now, max_tokens, max_requests, served, chunks, load
            )
    room = max_tokens
    requests = 0.0
    for at in range(after):
        if chunks[at] > 0.0:
            prefill_slots[prefills] = slots[order[at]]
            prefill_tokens[prefills] = int(chunks[at])
            prefills += 1
            room -= chunks[at]
            requests += 1.0
    deepest = 1
    for i in range(n):
        spec[i] = min(spec[i], ints[MAX_REMAINING_OUTPUT, slots[i]])
        if served[i]:
            decode_slots[decodes] = slots[i]
            decodes += 1
            room -= spec[i]
            requests += 1.0
            deepest = max(deepest, spec[i])
    # Budget that no admitted prefill wants: decodes ahead of their deadline.
    ahead = np.argsort(state[DUE])
    for i in ahead:
        if state[REM, i] != 0.0 or served[i] or requests >= max_requests or room < spec[i]:
            continue
        trial[:] = load
        longer = add_decode(lines, trial, float(spec[i]), state[CTX, i])
        if spec[i] > deepest:
            longer = add_speculation(lines, trial, 0.0, float(spec[i] - deepest))
        if now + longer > end + EPS:
            break
        load[:] = trial
        time = longer
        deepest = max(deepest, spec[i])
        decode_slots[decodes] = slots[i]
        decodes += 1
        room -= spec[i]
        requests += 1.0
    claimed = np.zeros(used, np.bool_)
    for slot in slots:
        claimed[slot] = not relegated[slot]
    free, decodes, prefills = make_room(
        ints, floats, flags, used, claimed, free_blocks, block_size, int(max_requests),
        decode_slots, decodes, prefill_slots, prefill_tokens, prefills, preempted,
    )  # fmt: skip
    spec_of = np.ones(used, np.int64)
    spec_of[slots] = spec
    free = room_for_drafts(ints, decode_slots, decodes, spec_of, free, block_size)
    decodes, prefills, time = fill_best_effort(
        ints, floats, flags, used, claimed, now, end, lines, settings, max_tokens, max_requests, free,
        block_size, total_blocks, decode_slots, decodes, prefill_slots, prefill_tokens, prefills, preempted,
        spec_of, decodes + prefills == 0,
    )  # fmt: skip
    return (
        decode_slots[:decodes],
        spec_of[decode_slots[:decodes]],
        prefill_slots[:prefills],
        prefill_tokens[:prefills],
        np.flatnonzero(preempted),
        np.flatnonzero(relegated),
        time,
    )
