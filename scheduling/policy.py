"""The protocols that every policy implements, and the plan of one step.

A policy is a name with three parts: who is admitted, what the next batch is, which replica is asked first.
They are pure: same arguments, same answer; time is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scheduling.types import AdmissionDecision, Candidate, EngineLimits

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from scheduling.request_table import RequestTable
    from scheduling.time_model import TimeModel


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The next engine step.

    decode_slots: slots that decode in this step; spec_tokens: tokens verified for each (1 = plain decoding).
    prefill_slots, prefill_tokens: chunks, in the order in which they should run.
    preempt_slots: requests whose KV is dropped first. predicted_s: predicted duration with margin, seconds.
    relegate_slots: standard requests that have missed, and hopeful ones that are given up; best effort from now on.
    """

    decode_slots: npt.NDArray[np.int64]
    spec_tokens: npt.NDArray[np.int64]
    prefill_slots: npt.NDArray[np.int64]
    prefill_tokens: npt.NDArray[np.int64]
    preempt_slots: npt.NDArray[np.int64]
    relegate_slots: npt.NDArray[np.int64]
    predicted_s: float


class BatchPolicy(Protocol):
    """Forms the next batch of one replica."""

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step; never empty while a resident request could run."""
        ...


class AdmissionPolicy(Protocol):
    """Decides which new requests one replica can promise."""

    def decide(
        self,
        now_s: float,
        table: RequestTable,
        free_blocks: int,
        model: TimeModel,
        limits: EngineLimits,
        candidates: Sequence[Candidate],
    ) -> AdmissionDecision:
        """Accept the most valuable feasible subset; running promises are kept feasible."""
        ...


NOTHING_CACHED: Mapping[str, int] = MappingProxyType({})


class ReplicaView(NamedTuple):
    """What routing and admission know of one replica."""

    replica: str
    table: RequestTable
    free_blocks: int
    model: TimeModel
    limits: EngineLimits
    role: str = "both"
    cached_tokens: Mapping[str, int] = NOTHING_CACHED
    """Prompt tokens in this replica's prefix cache, by candidate request id."""
    as_of_s: float = -math.inf
    """The moment that the table stands for, if that is still to come: nobody joins the replica before."""


class RoutingPolicy(Protocol):
    """Orders the replicas that are asked for a promise."""

    def order(self, now_s: float, candidate: Candidate, views: Sequence[ReplicaView]) -> Sequence[int]:
        """Indices into views, the one to ask first in front; at most the policy's own limit of them."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """A named bundle, as `slosctl up --policy NAME` and the simulator take it.

    admits_all: no promise is computed; every request is submitted as standard at once (the baselines).
    repeats_decodes: while every resident decodes, the plan of a step is the last one again, until a request comes,
    finishes, becomes overdue or finds no KV block; the simulator then plans once for many steps.
    alone: asked in place of `admission` where there is one replica only: who comes next has nowhere else to go.
    gentle: asked before `admission` where there are several replicas: promises that cost no hopeful request its place.
    hope: says whether a replica could keep a request that is promised nothing, beside all it serves by deadlines; None:
    its batches serve by deadlines only what is promised. A declined request that can still be in time is sent at once.
    """

    name: str
    description: str
    admission: AdmissionPolicy
    batching: BatchPolicy
    routing: RoutingPolicy
    admits_all: bool = False
    repeats_decodes: bool = False
    alone: AdmissionPolicy | None = None
    gentle: AdmissionPolicy | None = None
    hope: AdmissionPolicy | None = None

    def admission_among(self, replicas: int) -> AdmissionPolicy:
        """Who is asked for a promise where there are so many replicas."""
        return self.alone if replicas == 1 and self.alone is not None else self.admission
