"""Whether a request kept its SLOs (ALGORITHMS section 12): the one function that engine, load test and simulator call.

For a decode stage whose first token is due at D and came at f, token k after the first is due at max(D, f) + k * TPOT;
an answer after thinking continues that line at its own TPOT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    stretch = 1.0 + tolerance
    first_due = arrival_s + slo.ttft_s * stretch
    anchor = max(first_due, first_token_s)
    thinking_tpot = slo.tpot_s if slo.thinking_tpot_s is None else slo.thinking_tpot_s
    thinking = 0 if slo.thinking_tpot_s is None else thinking_tokens
    due = [first_due]
    for k in range(1, tokens):
        offset = min(k, thinking) * thinking_tpot + max(k - thinking, 0) * slo.tpot_s
        due.append(anchor + offset * stretch)
    return due


def score(
    arrival_s: float, token_times_s: Sequence[float], slo: Slo, thinking_tokens: int = 0, complete: bool = True
) -> Score:
    """Score a request from its arrival, the time of every output token, and its SLO.

    complete: the request ended by itself; a failed one attains nothing. A client's cancel is not scored at all.
    """
    if not token_times_s:
        return Score(False, False, float("inf"), 0.0, float("inf"))
    first, last, count = token_times_s[0], token_times_s[-1], len(token_times_s)
    strict_due = due_times(arrival_s, first, count, slo, thinking_tokens)
    worst = max(at - due for at, due in zip(token_times_s, strict_due, strict=True))
    paper_due = due_times(arrival_s, first, count, slo, thinking_tokens, PAPER_TOLERANCE)
    checked = (0, *range(PAPER_STRIDE, count, PAPER_STRIDE))
    paper = all(token_times_s[k] <= paper_due[k] + ROUNDING_S for k in checked)
    return Score(
        attained=complete and worst <= ROUNDING_S,
        attained_paper=complete and paper,
        ttft_s=first - arrival_s,
        mean_tpot_s=(last - first) / (count - 1) if count > 1 else 0.0,
        worst_lateness_s=worst,
    )
