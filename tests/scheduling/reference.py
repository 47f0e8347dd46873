"""The exact simulation of batches in plain Python, request by request: the oracle of the compiled one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scheduling.time_model import BatchShape, TimeModel

EPS = 1e-9


@dataclass(frozen=True, slots=True)
class Req:
    """A promised request: rem > 0 in prefill, else decoding; due: of its next output token."""

    rem: int
    due: float
    pace: float
    ctx: int
    out: int


@dataclass(frozen=True, slots=True)
class Rules:
    """The engine and the caps on batch durations."""

    model: TimeModel
    max_tokens: int
    max_requests: int
    idle_cap: float
    paces: float
    longest: float
    shortest: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Indices that decode, chunk per index, duration."""

    decodes: frozenset[int]
    chunks: dict[int, int]
    duration: float


def shape(requests: list[Req], decodes: set[int], chunks: dict[int, int]) -> BatchShape:
    kv = sum(requests[i].ctx for i in decodes)
    attention = sum(c * (requests[i].ctx + c / 2) for i, c in chunks.items())
    return BatchShape(len(decodes) + sum(chunks.values()), len(decodes) + len(chunks), kv, attention)


def fits(requests: list[Req], decodes: set[int], chunks: dict[int, int], time: float, rules: Rules) -> bool:
    if len(decodes) + len(chunks) > rules.max_requests:
        return False
    if len(decodes) + sum(chunks.values()) > rules.max_tokens:
        return False
    return rules.model.duration_s(shape(requests, decodes, chunks)) <= time + EPS


def form(requests: list[Req], now: float, rules: Rules) -> Batch | None:
    """One batch; None when somebody must be late."""
    decoding = [i for i, r in enumerate(requests) if r.rem == 0]
    prefills = sorted((i for i, r in enumerate(requests) if r.rem > 0), key=lambda i: requests[i].due)
    cap = rules.idle_cap
    if decoding:
        cap = max(rules.shortest, min(rules.longest, rules.paces * min(requests[i].pace for i in decoding)))
    end = min([requests[i].due for i in decoding + prefills[:1]] + [now + cap])
    second = min((requests[i].due + requests[i].pace for i in decoding), default=math.inf)
    threshold = min(second, end + cap) - EPS
    decodes = {i for i in decoding if requests[i].due < threshold}
    first = prefills[0] if prefills and end == requests[prefills[0]].due else None
    if first is not None and not fits(requests, decodes, {first: requests[first].rem}, end - now, rules):
        urgent = sorted(decodes, key=lambda i: requests[i].due)
        decodes = set()
        for i in urgent:
            if not fits(requests, decodes | {i}, {first: requests[first].rem}, end - now, rules):
                break
            decodes.add(i)
    if decodes and not fits(requests, decodes, {}, end - now, rules):
        urgent = sorted(decodes, key=lambda i: requests[i].due)
        decodes = set()
        for i in urgent:
            if fits(requests, decodes | {i}, {}, end - now, rules):
                decodes.add(i)
                continue
            if requests[i].due <= end + EPS:
                return None
            break
    chunks: dict[int, int] = {}
    for i in prefills:
        low, high = 0, requests[i].rem
        while low < high:
            middle = (low + high + 1) // 2
            if fits(requests, decodes, {**chunks, i: middle}, end - now, rules):
                low = middle
            else:
                high = middle - 1
        if low == 0:
            break
        chunks[i] = low
        if low < requests[i].rem:
            break
    if not decodes and not chunks:
        return None
    return Batch(frozenset(decodes), chunks, rules.model.duration_s(shape(requests, decodes, chunks)))


def apply(requests: list[Req], batch: Batch) -> list[Req]:
    after = list(requests)
    for i in batch.decodes:
        r = after[i]
        after[i] = replace(r, due=r.due + r.pace, ctx=r.ctx + 1, out=max(r.out - 1, 1))
    for i, chunk in batch.chunks.items():
        r = after[i]
        r = replace(r, rem=r.rem - chunk, ctx=r.ctx + chunk)
        if r.rem == 0:
            r = replace(r, due=r.due + r.pace, out=max(r.out - 1, 1))
        after[i] = r
    return after


def feasible(requests: list[Req], now: float, rules: Rules) -> bool:
    """Prefills to the end, then decodes until all fit into one batch in time, or everyone had two turns."""
    for _ in range(5000):
        if all(r.rem == 0 for r in requests):
            break
        batch = form(requests, now, rules)
        if batch is None:
            return False
        requests, now = apply(requests, batch), now + batch.duration
    horizon = now + 2 * max((r.pace for r in requests), default=0.0)
    for _ in range(5000):
        everyone = set(range(len(requests)))
        if not requests:
            return True
        together = rules.model.duration_s(shape(requests, everyone, {}))
        in_time = now + together <= min(r.due for r in requests) + EPS
        within = len(requests) <= min(rules.max_requests, rules.max_tokens)
        if within and in_time and together <= min(r.pace for r in requests):
            return True
        batch = form(requests, now, rules)
        if batch is None:
            return False
        requests, now = apply(requests, batch), now + batch.duration
        if now > horizon:
            return True
    return True


def peak_blocks(requests: list[Req], block: int) -> float:
    """Future peak: at the moment each request ends, those that outlive it hold their KV, each rounded up a block."""
    peak = 0.0
    for ending in requests:
        alive = [r for r in requests if r.out >= ending.out]
        peak = max(peak, sum(r.ctx + r.rem + ending.out + block - 1 for r in alive) / block)
    return peak


def sustainable(requests: list[Req], rules: Rules) -> bool:
    """Every tier at its share of the tightest TPOT, now and whenever a request ends."""
    if not requests:
        return True
    limit = min(rules.max_requests, rules.max_tokens)

    def fluid(alive: list[Req], grown: int) -> bool:
        tightest = min(r.pace for r in alive)
        decodes = sum(tightest / r.pace for r in alive)
        kv = sum((r.ctx + r.rem + grown) * tightest / r.pace for r in alive)
        if decodes > limit + EPS:
            return False
        return rules.model.duration_s(BatchShape(decodes, decodes, kv)) <= tightest + EPS

    moments = [(0, list(requests))]
    moments += [(ending.out, [r for r in requests if r.out >= ending.out]) for ending in requests]
    generous = sum(r.ctx + r.rem + r.out for r in requests)
    together = rules.model.duration_s(BatchShape(len(requests), len(requests), generous))
    if len(requests) <= limit and together <= min(r.pace for r in requests):
        return True
    return all(fluid(alive, grown) for grown, alive in moments)
