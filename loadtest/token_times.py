"""When each output token came, from pieces of an answer that may hold several tokens, or an unknown number."""

from __future__ import annotations


def token_times(arrivals_s: list[tuple[float, int | None, bool]], output_tokens: int) -> tuple[list[float], int]:
    """Return the time of every output token, and how many came up to the last piece of thinking.

    Where pieces do not say how many tokens they hold, output_tokens are spread evenly over them; without a count (the
    answer broke off) a piece is one token.
    """
    if not arrivals_s:
        return [], 0
    last_thinking = max((i for i, (_, _, thinking) in enumerate(arrivals_s) if thinking), default=-1)
    if all(tokens is not None for _, tokens, _ in arrivals_s):
        times = [at for at, tokens, _ in arrivals_s for _ in range(tokens or 0)]
        return times, sum(tokens or 0 for _, tokens, _ in arrivals_s[: last_thinking + 1])
    pieces = len(arrivals_s)
    total = output_tokens or pieces
    times = [arrivals_s[k * pieces // total][0] for k in range(total)]
    return times, sum(1 for k in range(total) if k * pieces // total <= last_thinking)
