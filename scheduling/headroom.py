"""What is kept for requests to come: under pressure a large one is promised nothing, so that several small ones are.

A search over the newcomers at hand cannot see those that arrive next. Where memory or time binds, one request that
needs four times the usual costs the promises of four of them a moment later. So the larger a request is, against the
residents' mean per value, the more must stay free beside it: of memory at the future peak, and of its own slack, so
that later and shorter prompts can go ahead of it. A replica with room keeps nobody out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduling.admission import Newcomer, Problem
from scheduling.kernels.promised import alone_s
from scheduling.kernels.rows import CTX, EPS, OUT, REM
from scheduling.request_table import VALUE, BoolArray, FloatArray, RequestTable

FEWEST = 4
"""Promised residents below which their mean says too little."""


@dataclass(frozen=True, slots=True)
class Headroom:
    """Shares that stay free for each time that a request exceeds the mean by itself, and the most that must.

    memory: of all KV memory, at the future peak; slack: of the time that is left to a prompt beyond its own prefill.
    """

    memory: float = 0.07
    most_memory: float = 0.3
    slack: float = 0.3
    most_slack: float = 0.5

    def affordable(self, problem: Problem, table: RequestTable) -> BoolArray:
        """Which newcomers leave enough free."""
        news = problem.newcomers
        n = len(problem.residents)
        if n < FEWEST:
            return np.ones(len(news), dtype=np.bool_)
        state, slots = problem.state, problem.residents
        worth = table.floats[VALUE, slots]
        mean_kv = float(((state[CTX] + state[REM] + state[OUT])[:n] / worth).mean())
        need = np.array([new.ctx + new.rem + new.out for new in news], dtype=np.float64)
        _, _, _, peak = problem.check(np.zeros(len(news), dtype=np.bool_))
        free = 1.0 - (peak + need / problem.limits.block_size) / problem.capacity_blocks
        kept = np.minimum(self.memory * (need / (problem.item_value * mean_kv) - 1.0), self.most_memory)
        affords: BoolArray = free >= kept
        mean_prompt = float((table.prompt_tokens[slots] / worth).mean())
        over = problem.item_rem / (problem.item_value * mean_prompt) - 1.0
        for k in np.flatnonzero(affords & (over > 0.0)):
            affords[k] = self._spare_slack(problem, int(k)) >= min(self.slack * over[k], self.most_slack)
        return affords

    def _spare_slack(self, problem: Problem, item: int) -> float:
        """Share of a newcomer's slack that is left when all prefills are done that are promised, and its own."""
        new = problem.newcomers[item]
        lines: FloatArray = problem.lines
        max_tokens = float(problem.limits.max_batch_tokens)
        own_s = alone_s(float(new.rem), float(new.ctx), lines, max_tokens, np.empty(lines.shape[0]))
        slack_s = new.due_s - problem.now_s - own_s
        if slack_s <= EPS:
            return 1.0
        only = np.zeros(len(problem.newcomers), dtype=np.bool_)
        only[item] = True
        _, _, done_s, _ = problem.check(only)
        return 1.0 - max(0.0, done_s - own_s) / slack_s


NO_HEADROOM = Headroom(0.0, 0.0, 0.0, 0.0)
"""Nothing is kept: the search over the newcomers alone decides."""


def too_large(new: Newcomer, block_size: int) -> str:
    """Why nothing is promised, for people."""
    blocks = -(-(new.ctx + new.rem + new.out) // block_size)
    return (
        f"its {new.rem} prompt tokens and {blocks} blocks of KV memory are more than others need, and would leave too "
        "little free for those to come; wait, or shorten the prompt or max_tokens"
    )
