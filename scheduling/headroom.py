"""What is kept for requests to come: under pressure a large one is promised nothing, so that several small ones are.

A search over the newcomers at hand cannot see those that arrive next. Where memory or time binds, one request that
needs four times the usual costs the promises of four of them a moment later. So the larger a request is, against the
residents' mean per value, the more must stay free beside it: of memory at the future peak, and of its own slack, so
that later and shorter prompts can go ahead of it. A replica with room keeps nobody out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scheduling.admission import Problem
from scheduling.newcomers import Newcomer
from scheduling.request_table import VALUE, BoolArray, RequestTable

FEWEST = 4
"""Promised residents below which their mean says too little."""


@dataclass(frozen=True, slots=True)
class Headroom:
    """Shares that stay free for each time that a request exceeds the mean by itself, and the most that must.

    memory: of all KV memory, at the future peak; slack: of the time that is left to a prompt beyond its own prefill.
    """

    memory: float = 0.12
    most_memory: float = 0.4
    slack: float = 1.0
    most_slack: float = 0.9

    def affordable(self, problem: Problem, table: RequestTable, all_done_s: float = math.inf) -> BoolArray:
        """Which newcomers leave enough free.

        all_done_s: seconds until all prefills would be done if all newcomers came, where all of them can: nobody of
        them needs longer alone.
        """
        n = len(problem.residents)
        if n < FEWEST:
            return np.ones(len(problem.newcomers), dtype=np.bool_)
        return problem.leaves_enough(
            table.floats[VALUE, problem.residents],
            table.prompt_tokens[problem.residents].astype(np.float64),
            np.array((self.memory, self.most_memory, self.slack, self.most_slack)),
            all_done_s,
        )


NO_HEADROOM = Headroom(0.0, 0.0, 0.0, 0.0)
"""Nothing is kept: the search over the newcomers alone decides."""


def too_large(new: Newcomer, block_size: int) -> str:
    """Why nothing is promised, for people."""
    blocks = -(-(new.ctx + new.rem + new.out) // block_size)
    return (
        f"its {new.rem} prompt tokens and {blocks} blocks of KV memory are more than others need, and would leave too "
        "little free for those to come; wait, or shorten the prompt or max_tokens"
    )
