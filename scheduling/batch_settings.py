"""What shapes a batch of the default policy, as numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """What shapes a batch. "Steps" are multiples of the engine's shortest step (one decode alone).

    longest_s, longest_steps: a batch lasts at most the larger of the two; arrivals wait for its end.
    ttft_share: where no promise needs it longer, a batch lasts at most this share of the shortest TTFT among the
    resident requests: whoever arrives next may have one as short.
    paces: while something decodes, at most this many times the tightest resident TPOT, but
    shortest_steps: never less than this many steps.
    filler_s, filler_steps: batches that exist only for best-effort work last at most the larger of the two, while
    something promised waits for their end; where nothing promised is resident,
    alone: this many times as long: most of a short step is overhead on engines whose steps have much of it.
    watermark: share of memory that must stay free when a best-effort request starts, so that it is not evicted soon.
    age_s: the watermark falls to nothing over this waiting time.
    ahead_s: where a batch has no time for all prompts that wait, decodes run ahead of their deadlines by this at most;
    further as memory runs short (kernels.step): who ends early frees memory, but with much of it free time binds.
    hopeful_memory: a hopeful request starts only where this share of memory stays free at the future peak for each time
    that it exceeds the others' mean by itself, as with headroom for promises.
    hopeful_rate: it starts only where all decodes could be sustained even if steps took this share longer for each time
    the others' mean that it needs: what they leave of every step is all that prompts to come are computed in.
    beside: best-effort work may lengthen a batch of promised and hopeful work by this share of it, in its turns:
    turn_s: batches that begin in the first so many seconds of every
    turn_every_s: (0: all batches). Its floor is beside * turn_s / turn_every_s of the time. Little in every batch would
    be less than one token, and a resident that gets no token only holds memory until it is evicted.
    lull_s: where no prompt waits, memory is free and every decode is so far ahead of its deadline, any batch may be
    lengthened by what batches of best-effort work last.
    """

    longest_s: float = 0.2
    longest_steps: float = 6.0
    ttft_share: float = 0.8
    paces: float = 3.0
    shortest_steps: float = 3.0
    filler_s: float = 0.03
    filler_steps: float = 1.5
    watermark: float = 0.2
    age_s: float = 60.0
    beside: float = 0.1
    turn_s: float = 0.2
    turn_every_s: float = 20.0
    lull_s: float = 6.0
    alone: float = 4.0
    ahead_s: float = 2.0
    hopeful_memory: float = 0.04
    hopeful_rate: float = 0.1
    array: npt.NDArray[np.float64] = field(init=False, repr=False, compare=False)
    """The settings in their order, read-only: what kernels read."""

    def __post_init__(self) -> None:
        """Write the array."""
        array = np.array([getattr(self, f.name) for f in fields(self) if f.init], dtype=np.float64)
        array.setflags(write=False)
        object.__setattr__(self, "array", array)

    def cap_s(self, step_s: float, tightest_tpot_s: float) -> float:
        """Longest batch beside decodes of this TPOT, on an engine whose shortest step takes step_s; seconds."""
        most = max(self.longest_s, self.longest_steps * step_s)
        return max(self.shortest_steps * step_s, min(most, self.paces * tightest_tpot_s))


DEFAULT_SETTINGS = BatchSettings()
