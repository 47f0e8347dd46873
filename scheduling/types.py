"""What the planner talks about: SLOs, requests, outcomes.

Times are seconds on one monotonic clock that the caller chooses; lengths are tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Admission(StrEnum):
    """What a request was told."""

    STANDARD = "standard"
    BEST_EFFORT = "best_effort"


class Round(StrEnum):
    """Part of a tool-calling session that a request is."""

    NONE = "none"
    INNER = "inner"
    LAST = "last"


class OnMiss(StrEnum):
    """What to do with a request whose SLOs cannot be promised."""

    BEST_EFFORT = "best_effort"
    REJECT = "reject"


class Phase(IntEnum):
    """Where a resident request stands."""

    PREFILL = 0
    DECODE = 1


@dataclass(frozen=True, slots=True)
class SloClass:
    """An application class; exactly one of ttft_s and ttft_slowdown is set.

    ttft_slowdown is a multiple of the prompt's zero-load prefill time. thinking_tpot_s and inner_tpot_s are None
    where the class has no such stage; value is the worth of one kept promise; length_quantile is the quantile of
    output lengths that memory is reserved for; precision_target is the share of promises that must be kept.
    """

    name: str
    tpot_s: float
    ttft_s: float | None = None
    ttft_slowdown: float | None = None
    thinking_tpot_s: float | None = None
    inner_tpot_s: float | None = None
    value: float = 1.0
    length_quantile: float = 0.75
    precision_target: float = 0.99
    description: str = ""


@dataclass(frozen=True, slots=True)
class Slo:
    """The SLO of one request, resolved: seconds from arrival and seconds per token."""

    ttft_s: float
    tpot_s: float
    thinking_tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A new request as admission sees it.

    cached_tokens is the part of the prompt that the replica under consideration holds in its prefix cache;
    expected_output_tokens is the estimate at the class's risk level, max_output_tokens the client's bound.
    """

    request_id: str
    arrival_s: float
    prompt_tokens: int
    slo: Slo
    expected_output_tokens: int
    max_output_tokens: int
    value: float = 1.0
    cached_tokens: int = 0
    slo_class: str = ""
    tenant: str = "default"
    session_id: str = ""

    @property
    def prefill_deadline_s(self) -> float:
        """When the first output token is due."""
        return self.arrival_s + self.slo.ttft_s


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine can do in a step and hold in memory."""

    max_batch_tokens: int
    max_batch_requests: int
    block_size: int
    total_blocks: int
    max_model_len: int
    max_spec_tokens: int = 1


@dataclass(frozen=True, slots=True)
class Admitted:
    """The SLOs of the request are guaranteed on this replica."""

    request_id: str
    replica: str
    prefill_deadline_s: float


@dataclass(frozen=True, slots=True)
class BestEffort:
    """No promise; the reason is one that a person can act on."""

    request_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Not served; the reason is one that a person can act on."""

    request_id: str
    reason: str
    retry_after_s: float = 1.0


Outcome = Admitted | BestEffort | Refused


@dataclass(frozen=True, slots=True)
class AdmissionDecision:
    """Answer of an admission policy for one replica.

    accepted: ids whose SLOs this replica can keep beside all it has promised. declined: id -> reason, where the policy
    gives reasons (ExactAdmission.explains).
    explain: numbers of the plan (JSON-able), for `slosctl explain`. Its key "lines", where a policy can give it, holds
    equally long lists "time_s" (from now), "budget_tokens" (what the planned batches supply by then, cumulative) and
    "demand_tokens" (what deadlines require by then, cumulative), which `slosctl explain --plot` draws.
    """

    accepted: tuple[str, ...]
    declined: dict[str, str]
    explain: dict[str, object] = field(default_factory=dict)
