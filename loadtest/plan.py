"""What a run sends: sessions with their start times and lengths, drawn from a scenario before the run begins.

A plan depends on its arguments alone: the same seed sends the same requests at the same times to every cluster.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from loadtest.arrivals import NO_SPIKE, Spike, poisson
from simulation.scenarios.catalog import SCENARIOS, find_scenario
from simulation.scenarios.slices import build
from simulation.workload import Workload

EVERY_APPLICATION = "all"
"""A scenario of the load test alone: the five applications in equal shares."""
_PARTS_OF_ALL = ("chatbot", "coding", "summarization", "tool-calling", "reasoning")
ARRIVALS = ("poisson", "burst", "trace")


class PlanError(ValueError):
    """The wanted load makes no sense; the text says why and what to change."""


@dataclass(frozen=True, slots=True)
class PlannedRound:
    """One request of a session; lengths in tokens.

    prompt_tokens counts everything in the prompt, added_tokens only what this round adds to the previous prompt and
    answer. round is "", "inner" or "last". delay_s: pause after the round before (the tool's own time).
    """

    prompt_tokens: int
    added_tokens: int
    output_tokens: int
    thinking_tokens: int
    round: str
    delay_s: float


@dataclass(frozen=True, slots=True)
class PlannedSession:
    """A session: one request, or the rounds of a tool loop."""

    number: int
    application: str
    start_s: float
    rounds: tuple[PlannedRound, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Sessions sorted by start; duration_s is when the last one may start, rate_per_s what was asked for."""

    scenario: str
    sessions: tuple[PlannedSession, ...]
    duration_s: float
    rate_per_s: float
    seed: int

    @property
    def requests(self) -> int:
        """Count of requests over all sessions."""
        return sum(len(s.rounds) for s in self.sessions)

    @property
    def applications(self) -> tuple[str, ...]:
        """Names of the applications in it."""
        return tuple(sorted({s.application for s in self.sessions}))


def scenarios() -> tuple[str, ...]:
    """Names that make takes."""
    return (*SCENARIOS, EVERY_APPLICATION)


def make(
    scenario: str,
    *,
    rate_per_s: float,
    duration_s: float,
    arrivals: str = "poisson",
    spike: Spike = NO_SPIKE,
    seed: int = 0,
    window_tokens: int = 8192,
    length_scale: float = 1.0,
    delay_scale: float = 1.0,
    data: Path | None = None,
) -> Plan:
    """Draw a plan; rate_per_s counts sessions. PlanError says what does not fit.

    arrivals: "poisson", "burst" (Poisson with a spike) or "trace" (the scenario's own bursts, stretched to the rate).
    Sessions that the window cannot hold are left out before the draw, as in the scenarios themselves.
    """
    if rate_per_s <= 0 or duration_s <= 0 or min(length_scale, delay_scale) <= 0:
        raise PlanError("rate, duration and scales must be positive")
    if arrivals not in ARRIVALS:
        raise PlanError(f"unknown arrivals {arrivals!r}; known: {', '.join(ARRIVALS)}")
    rng = np.random.default_rng([seed, 0x10AD])
    drawn = _fitting(_sessions(scenario, rate_per_s, seed, data), window_tokens, length_scale, delay_scale)
    if not drawn:
        raise PlanError(
            f"no session of {scenario!r} fits a window of {window_tokens} tokens;"
            f" use --length-scale below {length_scale:g}"
        )
    if arrivals == "trace":
        if scenario == EVERY_APPLICATION:
            raise PlanError(f"{EVERY_APPLICATION!r} has no trace of its own; use poisson or burst arrivals")
        chosen = [s for s in drawn if s.start_s < duration_s]
    else:
        times = poisson(rate_per_s, duration_s, rng, spike if arrivals == "burst" else NO_SPIKE)
        chosen = [replace(s, start_s=float(t)) for s, t in zip(_dealt(drawn, rng), times, strict=False)]
    if not chosen:
        raise PlanError(
            f"{rate_per_s:g} sessions/s over {duration_s:g} s sends nothing; raise the rate or the duration"
        )
    numbered = tuple(replace(s, number=i) for i, s in enumerate(chosen))
    return Plan(scenario, numbered, duration_s, rate_per_s, seed)


def _sessions(scenario: str, rate_per_s: float, seed: int, data: Path | None) -> list[PlannedSession]:
    if scenario == EVERY_APPLICATION:
        parts = [
            list(_of_workload(build(find_scenario(name), rate_per_s, seed=seed, data=data))) for name in _PARTS_OF_ALL
        ]
        return [session for group in zip(*parts, strict=False) for session in group]
    try:
        found = find_scenario(scenario)
    except ValueError:
        raise PlanError(f"unknown scenario {scenario!r}; known: {', '.join(scenarios())}") from None
    return list(_of_workload(build(found, rate_per_s, seed=seed, data=data)))


def _of_workload(workload: Workload) -> Iterator[PlannedSession]:
    names = [c.name for c in workload.classes]
    rows = range(len(workload))
    for number, group in itertools.groupby(rows, key=lambda row: int(workload.session[row])):
        members = list(group)
        name = names[int(workload.class_index[members[0]])]
        tool = name.startswith("tool")
        yield PlannedSession(
            number=number,
            application="tool" if tool else name,
            start_s=float(workload.arrival_s[members[0]]),
            rounds=tuple(
                PlannedRound(
                    prompt_tokens=int(workload.prompt_tokens[row]),
                    added_tokens=int(workload.prompt_tokens[row] - workload.shared_prefix_tokens[row]),
                    output_tokens=int(workload.output_tokens[row]),
                    thinking_tokens=int(workload.thinking_tokens[row]),
                    round="" if not tool else "last" if row == members[-1] else "inner",
                    delay_s=float(workload.tool_delay_s[row]),
                )
                for row in members
            ),
        )


def _fitting(
    sessions: list[PlannedSession], window_tokens: int, length_scale: float, delay_scale: float
) -> list[PlannedSession]:
    scaled = (replace(s, rounds=tuple(_scaled(s.rounds, length_scale, delay_scale))) for s in sessions)
    return [s for s in scaled if all(r.prompt_tokens + r.output_tokens <= window_tokens for r in s.rounds)]


def _scaled(rounds: tuple[PlannedRound, ...], scale: float, delay_scale: float) -> Iterator[PlannedRound]:
    """Scale what every round adds, so that a later prompt still is the earlier one with its answer and more."""
    shared = 0
    for index, planned in enumerate(rounds):
        added = planned.prompt_tokens if index == 0 else planned.added_tokens
        added = max(1, round(added * scale))
        output = max(1, round(planned.output_tokens * scale))
        thinking = min(round(planned.thinking_tokens * scale), output - 1)
        prompt = shared + added
        yield PlannedRound(prompt, added, output, max(0, thinking), planned.round, planned.delay_s * delay_scale)
        shared = prompt + output


def _dealt(sessions: list[PlannedSession], rng: np.random.Generator) -> Iterator[PlannedSession]:
    """Endless draw without lumps: applications take turns by share, sessions of each in a shuffled order."""
    queues = {}
    for application in sorted({s.application for s in sessions}):
        members = [s for s in sessions if s.application == application]
        shuffled = [members[i] for i in rng.permutation(len(members))]
        queues[application] = (len(members) / len(sessions), itertools.cycle(shuffled))
    # Each step every application earns its share and the richest one pays 1 for its turn; the random start keeps
    # two seeds from dealing the same order.
    credit = {application: float(rng.random()) for application in queues}
    while True:
        for application, (share, _) in queues.items():
            credit[application] += share
        turn = max(credit, key=lambda application: credit[application])
        credit[turn] -= 1.0
        yield next(queues[turn][1])
