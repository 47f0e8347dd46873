"""What the simulated controller and clients know of every request: its SLO, its tokens so far, what it was told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from scheduling.deadlines import class_ttft_s
from scheduling.request_table import BoolArray, FloatArray, IntArray
from scheduling.types import Slo
from simulation.engine_step import Tokens
from simulation.profiles import Profile
from simulation.workload import Workload

NOWHERE, IN_TRANSIT, LEAVING = -1, -2, -3
"""In place of a replica's index: on none; with a prefill half on one and a place on another; in its last step."""


@dataclass(slots=True)
class Requests:
    """Columns by workload row.

    ttft_s and all due times are the engine's: relay_s, which tokens take to the client, is off them already.
    times holds the tokens of row i at offsets[i] .. offsets[i] + produced[i]. late: some token certainly came after
    it was due (strict). promised: told "standard" at some time. cached: prompt tokens found in a prefix cache.
    """

    workload: Workload
    arrival_s: FloatArray
    ttft_s: FloatArray
    tpot_s: FloatArray
    thinking_tpot_s: FloatArray
    max_output: IntArray
    offsets: IntArray
    times: FloatArray
    produced: IntArray
    late: BoolArray
    promised: BoolArray
    finished: BoolArray
    replica: IntArray
    preemptions: IntArray
    cached: IntArray
    relay_s: float = 0.0
    tokens: Tokens = field(init=False)
    """Where engines write the times of tokens."""

    def __post_init__(self) -> None:
        """Name the arrays that engines write to."""
        self.tokens = Tokens(self.times, self.offsets, self.produced)

    @staticmethod
    def of(workload: Workload, profile: Profile, relay_s: float = 0.0) -> Requests:
        """Nothing has arrived yet; relay_s: what the controller takes off every deadline."""
        count = len(workload)
        prompts, inverse = np.unique(workload.prompt_tokens, return_inverse=True)
        zero_load = np.array([profile.zero_load_prefill_s(int(p)) for p in prompts])[inverse]
        ttft = np.empty(count)
        tpot = np.empty(count)
        thinking = np.empty(count)
        max_output = np.empty(count, np.int64)
        for index, slo_class in enumerate(workload.classes):
            mine = workload.class_index == index
            ttft[mine] = [class_ttft_s(slo_class, float(z)) for z in zero_load[mine]]
            tpot[mine] = slo_class.tpot_s
            thinking[mine] = slo_class.tpot_s if slo_class.thinking_tpot_s is None else slo_class.thinking_tpot_s
            max_output[mine] = int(workload.output_tokens[mine].max(initial=1))
        thinking = np.where(workload.thinking_tokens > 0, thinking, tpot)
        offsets = np.concatenate([[0], np.cumsum(workload.output_tokens)]).astype(np.int64)
        return Requests(
            workload=workload,
            arrival_s=workload.arrival_s.copy(),
            ttft_s=ttft - relay_s,
            tpot_s=tpot,
            thinking_tpot_s=thinking,
            max_output=max_output,
            offsets=offsets,
            times=np.zeros(int(offsets[-1])),
            produced=np.zeros(count, np.int64),
            late=np.zeros(count, np.bool_),
            promised=np.zeros(count, np.bool_),
            finished=np.zeros(count, np.bool_),
            replica=np.full(count, NOWHERE, np.int64),
            preemptions=np.zeros(count, np.int64),
            cached=np.zeros(count, np.int64),
            relay_s=relay_s,
        )

    def slo(self, row: int) -> Slo:
        """The request's SLO, as the engine must keep it."""
        thinks = self.workload.thinking_tokens[row] > 0
        return Slo(
            float(self.ttft_s[row]), float(self.tpot_s[row]), float(self.thinking_tpot_s[row]) if thinks else None
        )

    def owed(self, row: int) -> Slo:
        """The request's SLO, as its client is owed it."""
        slo = self.slo(row)
        return replace(slo, ttft_s=slo.ttft_s + self.relay_s)

    def token_times(self, row: int) -> FloatArray:
        """When each output token so far came."""
        start = self.offsets[row]
        return self.times[start : start + self.produced[row]]

    def next_due_s(self, row: int) -> float:
        """When the next output token is due: the first one by the TTFT, later ones along the due line."""
        due = float(self.arrival_s[row] + self.ttft_s[row])
        count = int(self.produced[row])
        if count == 0:
            return due
        anchor = max(due, float(self.times[self.offsets[row]]))
        thinking = max(0, int(self.workload.thinking_tokens[row]) - 1)
        tight = min(count, thinking)
        return anchor + tight * float(self.thinking_tpot_s[row]) + (count - tight) * float(self.tpot_s[row])
