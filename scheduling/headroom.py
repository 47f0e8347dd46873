"""What is kept for requests to come: under pressure a large one is promised nothing, so that several small ones are.

A search over the newcomers at hand cannot see those that arrive next. Where memory or time binds, one request that
needs four times the usual costs the promises of four of them a moment later. So the larger a request is, against the
residents' mean per value, the more must stay free beside it: of memory at the future peak, and of its own slack, so
that later and shorter prompts can go ahead of it. A replica with room keeps nobody out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from scheduling.admission import Problem
from scheduling.request_table import BoolArray, FloatArray, RequestTable


@dataclass(frozen=True, slots=True)
class Headroom:
    """Shares that stay free for each time that a request exceeds the mean by itself, and the most that must.

    memory: of all KV memory, at the future peak; slack: of the time that is left to a prompt beyond its own prefill.
    small: the mean prompt's share up to which a prompt is in nobody's way; it is what a larger one exceeds.
    """

    memory: float
    most_memory: float
    slack: float
    most_slack: float
    small: float = 1.0
    array: FloatArray = field(init=False, repr=False, compare=False)
    """The shares in their order, read-only: what kernels read; empty where nothing is kept."""

    def __post_init__(self) -> None:
        """Write the array."""
        shares = (self.memory, self.most_memory, self.slack, self.most_slack)
        array = np.array((*shares, self.small) if any(shares) else (), dtype=np.float64)
        array.setflags(write=False)
        object.__setattr__(self, "array", array)

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return len(self.array) > 0

    def affordable(self, problem: Problem, table: RequestTable, all_done_s: float = math.inf) -> BoolArray:
        """Which newcomers leave enough free.

        all_done_s: seconds until all prefills would be done if all newcomers came, where all of them can: nobody of
        them needs longer alone.
        """
        return problem.leaves_enough(table, self.array, all_done_s)


AMONG_OTHERS = Headroom(memory=0.12, most_memory=0.4, slack=1.0, most_slack=0.9)
"""Where other replicas are asked too: the next small request may find its place on one of those."""
ALONE = Headroom(memory=0.3, most_memory=0.6, slack=2.0, most_slack=0.95, small=0.5)
"""Where there is one replica only: whoever comes next has nowhere else to go."""
NO_HEADROOM = Headroom(0.0, 0.0, 0.0, 0.0)
"""Nothing is kept: the search over the newcomers alone decides."""
