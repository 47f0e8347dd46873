"""The six scenarios by name, each one slice of 20 minutes at its source's own rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scheduling.classes import find
from scheduling.types import SloClass
from simulation.scenarios import sources
from simulation.scenarios.sources import Part
from simulation.workload import Workload, merged, shifted, single_stage

TOOL_DELAY_MEDIAN_S, TOOL_DELAY_MEAN_S = 2.0, 5.0
"""Assumed lognormal: no public file tells how long tools take."""

Builder = Callable[[Part, Path | None, np.random.Generator], Workload]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named workload; files are the public sources it draws from."""

    name: str
    description: str
    build: Builder
    files: tuple[str, ...]


def _chatbot(part: Part, data: Path | None, rng: np.random.Generator) -> Workload:
    times = sources.arrivals("azure-conv", part, data, rng)
    prompt, output = sources.lengths("sharegpt", 2048, len(times), part, data, rng)
    return single_stage(find("chatbot"), times, prompt, output)


def _coding(part: Part, data: Path | None, rng: np.random.Generator) -> Workload:
    times = sources.arrivals("azure-code", part, data, rng)
    prompt, output = sources.lengths("humaneval", 2048, len(times), part, data, rng)
    return single_stage(find("coding"), times, prompt, output)


def _coding_trace(part: Part, data: Path | None, rng: np.random.Generator) -> Workload:
    times = sources.arrivals("azure-code", part, data, rng)
    prompt, output = sources.lengths("azure-code", 8192, len(times), part, data, rng)
    return single_stage(find("coding"), times, prompt, output)


def _summarization(part: Part, data: Path | None, rng: np.random.Generator) -> Workload:
    times = sources.arrivals("azure-conv", part, data, rng)
    prompt, output = sources.lengths("arxiv", 4096, len(times), part, data, rng)
    return single_stage(find("summarization"), times, prompt, output)


def _mixed(part: Part, data: Path | None, rng: np.random.Generator) -> Workload:
    return mixture(*(build(part, data, rng) for build in (_chatbot, _coding, _summarization)))


def mixture(chatbot: Workload, coding: Workload, summarization: Workload) -> Workload:
    """Three applications side by side.

    Chatbot and summarization take the same trace's arrivals: unless one is shifted, each chat comes with a document.
    """
    return merged([chatbot, coding, shifted(summarization, sources.SLICE_S / 2, sources.SLICE_S)])


def _reasoning(part: Part, data: Path | None, rng: np.random.Generator) -> Workload:
    times = sources.arrivals("deepseek-r1", part, data, rng)
    prompt, output, thinking = sources.reasoning_lengths(8192, len(times), part, data, rng)
    return single_stage(find("reasoning"), times, prompt, output, thinking)


def _tool_calling(part: Part, data: Path | None, rng: np.random.Generator) -> Workload:
    times = sources.arrivals("azure-code", part, data, rng)
    first, calls, growth, inner, last = sources.tool_rounds(len(times), part, data, rng)
    tool = find("tool")
    classes = (inner_round_class(tool), replace(tool, name="tool-last", inner_tpot_s=None))
    rows = int(calls.sum())
    session = np.repeat(np.arange(len(times)), calls)
    start = np.concatenate([[0], np.cumsum(calls)[:-1]])
    index = np.arange(rows) - start[session]
    is_last = index == calls[session] - 1
    output = np.where(is_last, rng.choice(last, rows), rng.choice(inner, rows))
    added = rng.choice(growth, rows)
    prompt = np.empty(rows, np.int64)
    shared = np.zeros(rows, np.int64)
    for row in range(rows):
        if index[row] == 0:
            prompt[row] = first[session[row]]
        else:
            shared[row] = prompt[row - 1] + output[row - 1]
            prompt[row] = shared[row] + added[row]
    arrival = np.full(rows, np.nan)
    arrival[start] = times
    sigma = np.sqrt(2.0 * np.log(TOOL_DELAY_MEAN_S / TOOL_DELAY_MEDIAN_S))
    delay = rng.lognormal(np.log(TOOL_DELAY_MEDIAN_S), sigma, rows)
    return Workload(
        classes=classes,
        class_index=is_last.astype(np.int64),
        arrival_s=arrival,
        prompt_tokens=prompt,
        output_tokens=np.asarray(output, np.int64),
        thinking_tokens=np.zeros(rows, np.int64),
        session=session.astype(np.int64),
        next_row=np.where(is_last, -1, np.arange(rows) + 1),
        shared_prefix_tokens=shared,
        tool_delay_s=np.where(index == 0, 0.0, delay),
    )


def inner_round_class(slo_class: SloClass) -> SloClass:
    """The class of a session's rounds before the last: its tight TPOT in force."""
    tight = slo_class.tpot_s if slo_class.inner_tpot_s is None else slo_class.inner_tpot_s
    return replace(slo_class, name=f"{slo_class.name}-inner", tpot_s=tight, inner_tpot_s=None)


_ALL = (
    Scenario("chatbot", "conversation arrivals, ShareGPT lengths, window 2048", _chatbot, ("azure-conv", "sharegpt")),
    Scenario("coding", "bursty code arrivals, HumanEval lengths", _coding, ("azure-code", "humaneval")),
    Scenario("coding-trace", "bursty code arrivals with the trace's own lengths", _coding_trace, ("azure-code",)),
    Scenario("summarization", "conversation arrivals, arXiv lengths", _summarization, ("azure-conv", "arxiv")),
    Scenario(
        "mixed",
        "chatbot, coding and summarization together",
        _mixed,
        ("azure-conv", "azure-code", "sharegpt", "humaneval", "arxiv"),
    ),
    Scenario(
        "tool-calling",
        "bursty sessions of 1-6 rounds, ToolBench lengths; the unit is the session",
        _tool_calling,
        ("azure-code", "toolbench-sessions", "toolbench-rounds"),
    ),
    Scenario(
        "reasoning", "R1 arrivals and lengths within 8192, thinking tight, answer loose", _reasoning, ("deepseek-r1",)
    ),
)
SCENARIOS = {s.name: s for s in _ALL}
PAPER_SCENARIOS = ("chatbot", "coding", "summarization", "mixed", "tool-calling", "reasoning")


def find_scenario(name: str) -> Scenario:
    """Scenario by name; ValueError names the ones there are."""
    if name not in SCENARIOS:
        raise ValueError(f"unknown scenario {name!r}; known: {', '.join(SCENARIOS)}")
    return SCENARIOS[name]
