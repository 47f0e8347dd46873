"""What one simulated run is made of; equal configurations give equal results."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Lengths(StrEnum):
    """What the planner knows of output lengths."""

    ORACLE = "oracle"
    QUANTILE = "quantile"
    MAX_TOKENS = "max_tokens"


@dataclass(frozen=True, slots=True)
class Failure:
    """A replica dies at a time, its KV with it, and is back after a while (never: infinity)."""

    replica: int
    at_s: float
    down_s: float


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The cluster that serves a workload.

    policy_options go to the policy's own function. prefill_replicas > 0: that many of the replicas only prefill and
    hand KV over, the rest only decode, but for colocated_replicas of them, which do both (a mixed fleet). noise:
    standard deviation of true step times, relative. margin: factor on the planner's predictions, fixed; learn_margin:
    each replica's is learned from its steps and promises instead, as in the controller (policies that promise to
    everybody have none). time_error: the planner's model is off by this factor - 1 (0.1: it believes steps take 10 %
    longer than they do). relay_s: what the controller takes off every deadline for the way from the engine to the
    client, seconds. admit_all: promise to everybody, whatever the policy's admission says (an ablation).
    stop_when_late: a run ends early once more than this share of sessions has certainly missed (strict scoring); 1
    never stops.
    """

    policy: str
    policy_options: tuple[tuple[str, object], ...] = ()
    routing: str | None = None
    replicas: int = 1
    prefill_replicas: int = 0
    colocated_replicas: int = 0
    lengths: Lengths = Lengths.QUANTILE
    noise: float = 0.0
    relay_s: float = 0.0
    margin: float = 1.0
    learn_margin: bool = False
    time_error: float = 0.0
    prefix_cache: bool = False
    speculation: bool = False
    admit_all: bool = False
    seed: int = 0
    failures: tuple[Failure, ...] = ()
    stop_when_late: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges; ValueError says what is wrong."""
        if self.replicas < 1:
            raise ValueError(f"replicas must be at least 1, not {self.replicas}")
        if not 0 <= self.prefill_replicas < self.replicas - self.colocated_replicas:
            raise ValueError(
                f"prefill_replicas must leave a replica to decode: {self.prefill_replicas} of {self.replicas}"
                + (f", {self.colocated_replicas} of which do both" if self.colocated_replicas else "")
            )
        if self.colocated_replicas and not self.prefill_replicas:
            raise ValueError("colocated_replicas stand beside prefill and decode replicas: set prefill_replicas too")
        if self.relay_s < 0:
            raise ValueError(f"relay_s must be >= 0, not {self.relay_s}")
        if self.noise < 0 or self.margin < 1.0 or self.time_error <= -1.0:
            raise ValueError("noise must be >= 0, margin >= 1, time_error > -1")
        if self.learn_margin and self.margin != 1.0:
            raise ValueError("a learned margin has no fixed one beside it: leave margin at 1")
        if self.failures and self.prefill_replicas:
            raise ValueError("failures are simulated for co-located replicas only")
        for failure in self.failures:
            if not 0 <= failure.replica < self.replicas:
                raise ValueError(f"failure of replica {failure.replica}, but there are {self.replicas}")
