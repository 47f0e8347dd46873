"""Random and hand-made workloads for tests of the simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from scheduling.types import EngineLimits, SloClass
from simulation import profiles
from simulation.profiles import Profile
from simulation.workload import Workload

TIGHT = SloClass("tight", 0.05, ttft_slowdown=3.0)
LOOSE = SloClass("loose", 0.1, ttft_slowdown=5.0)
THINKING = SloClass("thinking", 0.1, ttft_slowdown=3.0, thinking_tpot_s=0.05)
CLASSES = (TIGHT, LOOSE, THINKING)


def small_profile(kv_tokens: int = 4096, block: int = 16, max_batch_tokens: int = 512) -> Profile:
    """OPT-7B's step times with little memory, so that preemption happens."""
    profile = profiles.load("a100-opt-7b")
    limits = EngineLimits(max_batch_tokens, 64, block, kv_tokens // block, 2048, 5)
    return replace(profile, limits=limits)


def requests(*rows: tuple[float, int, int], slo_class: SloClass = LOOSE) -> Workload:
    """Independent requests: (arrival, prompt tokens, output tokens)."""
    return sessions([[row] for row in rows], classes=(slo_class,))


def sessions(
    of_rounds: list[list[tuple[float, int, int]]],
    classes: tuple[SloClass, ...] = (LOOSE,),
    class_index: list[int] | None = None,
    thinking: list[int] | None = None,
) -> Workload:
    """Sessions of rounds (arrival of the first or delay of a later round, prompt tokens, output tokens)."""
    rows = [(s, r, *row) for s, rounds in enumerate(of_rounds) for r, row in enumerate(rounds)]
    count = len(rows)
    previous = [0] + [rows[i - 1][3] + rows[i - 1][4] for i in range(1, count)]
    return Workload(
        classes=classes,
        class_index=np.array(class_index or [0] * count, np.int64),
        arrival_s=np.array([at if r == 0 else np.nan for _, r, at, _, _ in rows]),
        prompt_tokens=np.array([row[3] for row in rows], np.int64),
        output_tokens=np.array([row[4] for row in rows], np.int64),
        thinking_tokens=np.array(thinking or [0] * count, np.int64),
        session=np.array([row[0] for row in rows], np.int64),
        next_row=np.array(
            [i + 1 if i + 1 < count and rows[i + 1][0] == rows[i][0] else -1 for i in range(count)], np.int64
        ),
        shared_prefix_tokens=np.array(
            [min(previous[i], rows[i][3] - 1) if rows[i][1] else 0 for i in range(count)], np.int64
        ),
        tool_delay_s=np.array([0.0 if r == 0 else at for _, r, at, _, _ in rows]),
    )


@st.composite
def random_workloads(draw: st.DrawFn, most: int = 40, longest: int = 900) -> Workload:
    """Sessions of one to three rounds of all classes; bursts included."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, most))
    spread = draw(st.sampled_from([0.0, 0.5, 5.0, 40.0]))
    rounds = draw(st.integers(1, 3))
    starts = np.sort(rng.random(count) * spread)
    of_rounds = []
    for start in starts:
        prompt = int(rng.integers(1, longest // 2))
        session = []
        for number in range(int(rng.integers(1, rounds + 1))):
            output = int(rng.integers(1, 80))
            session.append((float(start) if number == 0 else float(rng.random() * 2), prompt, output))
            prompt = min(longest, prompt + output + int(rng.integers(1, 60)))
        of_rounds.append(session)
    size = sum(map(len, of_rounds))
    outputs = [row[2] for session in of_rounds for row in session]
    classes = [int(c) for c in rng.integers(0, len(CLASSES), size)]
    thinking = [
        int(rng.integers(1, output)) if c == 2 and output > 1 else 0 for c, output in zip(classes, outputs, strict=True)
    ]
    return sessions(of_rounds, CLASSES, classes, thinking)
