from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.controller.prefix import PrefixIndex, block_chain

tokens = st.lists(st.integers(0, 3), max_size=40)


@given(first=tokens, second=tokens, block_size=st.integers(1, 8))
def test_chains_agree_exactly_as_far_as_whole_blocks_do(first: list[int], second: list[int], block_size: int) -> None:
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    one, two = block_chain(first, block_size), block_chain(second, block_size)
    assert len(one) == len(first) // block_size
    same = 0
    while same < min(len(one), len(two)) and one[same] == two[same]:
        same += 1
    assert same == common // block_size


def test_what_was_computed_is_held_until_the_memory_was_needed() -> None:
    index = PrefixIndex(block_size=4, total_blocks=100)
    chain = block_chain(list(range(40)), 4)
    assert index.held_tokens(chain) == 0
    index.add(chain, free_blocks=50)
    assert index.held_tokens(chain) == 40
    assert index.held_tokens(block_chain([*range(20), 99], 4)) == 20
    index.computed(4 * 30)
    assert index.held_tokens(chain) == 40
    index.computed(4 * 10)
    assert index.held_tokens(chain) == 0


def test_what_the_engine_did_not_hold_is_not_counted_on_again() -> None:
    index = PrefixIndex(block_size=4, total_blocks=100)
    chain = block_chain(list(range(16)), 4)
    index.add(chain, free_blocks=50)
    index.forget(chain, held_tokens=8)
    assert index.held_tokens(chain) == 8


def test_the_index_does_not_grow_without_bound() -> None:
    index = PrefixIndex(block_size=1, total_blocks=10)
    for prompt in range(1000):
        index.computed(10)
        index.add(block_chain([prompt] * 5, 1), free_blocks=10)
    assert len(index) <= 25
