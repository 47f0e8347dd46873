"""How many of a fleet's workers should prefill and how many decode, for a load that was seen."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scheduling.time_model import BatchShape, TimeModel
from scheduling.types import EngineLimits


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """One request of the load; lengths in tokens, as far as it has come."""

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class SplitAdvice:
    """A split and the numbers behind it.

    prefill_work, decode_work: workers that would be busy all the time with each part of the load, the one in full
    batches, the other in steps within the time per output token. decode_batch: requests that one worker can decode
    together. prefill, decode: the whole workers of the fleet; 0 and 0 for a fleet of fewer than two.
    """

    requests: int
    seconds: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    tpot_s: float
    prefill_work: float
    decode_work: float
    decode_batch: int
    prefill: int
    decode: int

    @property
    def ratio(self) -> float:
        """Prefill workers wanted per decode worker."""
        return self.prefill_work / self.decode_work if self.decode_work else float("inf")

    @property
    def busiest(self) -> float:
        """Utilisation of the busier kind of worker under the split; above 1 the load is more than the fleet carries."""
        if not self.prefill or not self.decode:
            return self.prefill_work + self.decode_work
        return max(self.prefill_work / self.prefill, self.decode_work / self.decode)


def advise(
    load: Sequence[SeenRequest],
    seconds: float,
    tpot_s: float,
    workers: int,
    model: TimeModel,
    limits: EngineLimits,
) -> SplitAdvice:
    """Return the split under which the busier side is least busy; ValueError when there is no load to judge by.

    seconds: time over which the load came. tpot_s: time per output token that decode steps must stay within.
    """
    if not load or seconds <= 0 or tpot_s <= 0:
        raise ValueError("advice needs at least one request, and a positive time and time per output token")
    prompt_tokens = sum(request.prompt_tokens for request in load)
    output_tokens = sum(request.output_tokens for request in load)
    prefill_s = sum(_prefill_s(request.prompt_tokens, model, limits) for request in load)
    held = statistics.fmean(request.prompt_tokens + request.output_tokens / 2 for request in load)
    batch = decode_batch(held, tpot_s, model, limits)
    step_s = model.duration_s(BatchShape(batch, batch, batch * held))
    # The first token of each request comes with its prompt.
    decode_s = max(0, output_tokens - len(load)) * step_s / batch
    prefill_work, decode_work = prefill_s / seconds, decode_s / seconds
    prefill = _split(prefill_work, decode_work, workers)
    return SplitAdvice(
        requests=len(load),
        seconds=seconds,
        prompt_tokens_per_s=prompt_tokens / seconds,
        output_tokens_per_s=output_tokens / seconds,
        tpot_s=tpot_s,
        prefill_work=prefill_work,
        decode_work=decode_work,
        decode_batch=batch,
        prefill=prefill,
        decode=workers - prefill if prefill else 0,
    )


def decode_batch(held_tokens: float, tpot_s: float, model: TimeModel, limits: EngineLimits) -> int:
    """Return how many requests that hold so much KV can decode in steps of at most tpot_s; at least one."""
    fits = int(limits.total_blocks * limits.block_size / max(1.0, held_tokens))
    low, high = 1, max(1, min(limits.max_batch_requests, limits.max_batch_tokens, fits))
    while low < high:
        middle = (low + high + 1) // 2
        if model.duration_s(BatchShape(middle, middle, middle * held_tokens)) <= tpot_s:
            low = middle
        else:
            high = middle - 1
    return low


def _prefill_s(prompt_tokens: int, model: TimeModel, limits: EngineLimits) -> float:
    """Share of full prefill batches that a prompt takes: nothing else competes for them on a prefill worker."""
    full = limits.max_batch_tokens
    attention = prompt_tokens / 2
    return (
        prompt_tokens / full * model.duration_s(BatchShape(full, max(1.0, full / prompt_tokens), 0, full * attention))
    )


def _split(prefill_work: float, decode_work: float, workers: int) -> int:
    if workers < 2:
        return 0
    return min(range(1, workers), key=lambda count: max(prefill_work / count, decode_work / (workers - count)))
