from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadtest.token_times import token_times

pieces = st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(1, 4)), min_size=1, max_size=30)


@given(pieces, st.integers(0, 30))
def test_counted_pieces_give_every_token_the_time_of_its_piece(drawn: list[tuple[float, int]], thinking: int) -> None:
    arrivals = [(at, count, index < thinking) for index, (at, count) in enumerate(sorted(drawn))]
    times, thought = token_times(arrivals, 0)
    assert times == [at for at, count, _ in arrivals for _ in range(count)]
    assert thought == sum(count for _, count, is_thinking in arrivals if is_thinking)


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=30), st.integers(0, 90))
def test_uncounted_pieces_share_the_tokens_evenly_and_in_order(drawn: list[float], output_tokens: int) -> None:
    arrivals = [(at, None, False) for at in sorted(drawn)]
    times, thought = token_times(arrivals, output_tokens)
    assert len(times) == (output_tokens or len(drawn))
    assert thought == 0
    assert times == sorted(times)
    assert times[0] == arrivals[0][0]
    share = len(times) / len(arrivals)
    if share >= 1:
        assert set(times) == {at for at, _, _ in arrivals}


def test_an_answer_without_output_has_no_times() -> None:
    assert token_times([], 5) == ([], 0)
