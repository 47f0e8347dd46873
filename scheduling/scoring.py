"""Whether a request kept its SLOs (ALGORITHMS section 12): the one function that engine, load test and simulator call.

For a decode stage whose first token is due at D and came at f, token k after the first is due at max(D, f) + k * TPOT;
an answer after thinking continues that line at its own TPOT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduling.types import Slo

ROUNDING_S = 1e-9
"""Tolerance for the rounding of sums of floating-point seconds; not a tolerance of the SLO."""
PAPER_STRIDE = 10
PAPER_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Score:
    """What one request got.

    attained: strict scoring, every token in time. attained_paper: every 10th token, 5 % tolerance on TTFT and TPOT.
    ttft_s is infinite when no token came; mean_tpot_s is 0 with fewer than two tokens; worst_lateness_s is the
    largest lateness of any token under strict scoring, <= 0 when none was late.
    """

    attained: bool
    attained_paper: bool
    ttft_s: float
    mean_tpot_s: float
    worst_lateness_s: float


def due_times(
    arrival_s: float, first_token_s: float, tokens: int, slo: Slo, thinking_tokens: int = 0, tolerance: float = 0.0
) -> list[float]:
    """When each of `tokens` output tokens is due, the first included; tolerance stretches TTFT and TPOT alike.

    thinking_tokens: tokens of the thinking stage after the first token, the marker that ends it included; ignored
    when the SLO has no thinking stage.
    """
    return [float(due) for due in _due(arrival_s, first_token_s, tokens, slo, thinking_tokens, tolerance)]


def _due(
    arrival_s: float, first_token_s: float, tokens: int, slo: Slo, thinking_tokens: int, tolerance: float
) -> npt.NDArray[np.float64]:
    stretch = 1.0 + tolerance
    first_due = arrival_s + slo.ttft_s * stretch
    due: npt.NDArray[np.float64] = np.arange(tokens, dtype=np.float64)
    if slo.thinking_tpot_s is None:
        due *= slo.tpot_s * stretch
    else:
        tight = np.minimum(due, thinking_tokens)
        due = (tight * slo.thinking_tpot_s + (due - tight) * slo.tpot_s) * stretch
    due += max(first_due, first_token_s)
    due[:1] = first_due
    return due


def score(
    arrival_s: float,
    token_times_s: Sequence[float] | npt.NDArray[np.float64],
    slo: Slo,
    thinking_tokens: int = 0,
    complete: bool = True,
) -> Score:
    """Score a request from its arrival, the time of every output token, and its SLO.

    complete: the request ended by itself; a failed one attains nothing. A client's cancel is not scored at all.
    """
    times = np.asarray(token_times_s, dtype=np.float64)
    count = len(times)
    if count == 0:
        return Score(False, False, float("inf"), 0.0, float("inf"))
    first, last = float(times[0]), float(times[-1])
    worst = float((times - _due(arrival_s, first, count, slo, thinking_tokens, 0.0)).max())
    paper_due = _due(arrival_s, first, count, slo, thinking_tokens, PAPER_TOLERANCE)
    paper = bool((times[::PAPER_STRIDE] <= paper_due[::PAPER_STRIDE] + ROUNDING_S).all())
    return Score(
        attained=complete and worst <= ROUNDING_S,
        attained_paper=complete and paper,
        ttft_s=first - arrival_s,
        mean_tpot_s=(last - first) / (count - 1) if count > 1 else 0.0,
        worst_lateness_s=worst,
    )
