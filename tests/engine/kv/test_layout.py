"""Gather and scatter are inverse for every cache layout that an engine uses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kv.layout import KvLayout, Piece, checksum, region_checksum

BLOCKS = 12


def caches(kind: str, layers: int, seed: int) -> list[torch.Tensor]:
    """Caches of three layouts: blocks first (CPU), keys and values first (FlashAttention), permuted (HND)."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "blocks_first":
        return [torch.randn((BLOCKS, 2, 4, 6), generator=generator).half() for _ in range(layers)]
    if kind == "planes_first":
        return [torch.randn((2, BLOCKS, 4, 3, 6), generator=generator).half() for _ in range(layers)]
    return [torch.randn((2, BLOCKS, 3, 4, 6), generator=generator).half().transpose(2, 3) for _ in range(layers)]


@given(
    kind=st.sampled_from(["blocks_first", "planes_first", "permuted"]),
    layers=st.integers(1, 4),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_what_is_gathered_is_what_is_scattered(kind: str, layers: int, seed: int, data: st.DataObject) -> None:
    source, target = caches(kind, layers, seed), caches(kind, layers, seed + 1)
    ours, theirs = KvLayout(source, BLOCKS), KvLayout(target, BLOCKS)
    assert ours.fingerprint() == theirs.fingerprint()
    count = data.draw(st.integers(1, 6))
    permutation = st.permutations(range(BLOCKS))
    from_ids, to_ids = data.draw(permutation)[:count], data.draw(permutation)[:count]
    first = data.draw(st.integers(0, count - 1))
    start = data.draw(st.integers(0, layers - 1))
    piece = Piece(start, data.draw(st.integers(start + 1, layers)), first, data.draw(st.integers(first + 1, count)))
    before = [layer.clone() for layer in target]
    buffer = torch.empty(layers * BLOCKS * ours.block_elements, dtype=ours.dtype)
    gathered = ours.gather(piece, from_ids, buffer)
    assert gathered.numel() * gathered.element_size() == ours.nbytes(piece)
    if ours.in_host_words:
        assert b"".join(ours.regions(piece, from_ids)) == gathered.numpy().tobytes()
        assert region_checksum(ours.regions(piece, from_ids)) == checksum(gathered)
    else:
        assert kind == "permuted"
    theirs.scatter(piece, to_ids, gathered.clone())

    def block(cache: torch.Tensor, index: int) -> torch.Tensor:
        return cache[index] if kind == "blocks_first" else cache[:, index]

    written = set(range(piece.block_start, piece.block_end))
    for layer in range(layers):
        for index in range(BLOCKS):
            position = to_ids.index(index) if index in to_ids else None
            moved = piece.layer_start <= layer < piece.layer_end and position in written
            expected = block(source[layer], from_ids[position]) if moved else block(before[layer], index)
            assert torch.equal(block(target[layer], index), expected)


def test_layers_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="layer 1 is"):
        KvLayout([torch.zeros(4, 2), torch.zeros(4, 3)], 4)
    with pytest.raises(ValueError, match="counts 5 blocks"):
        KvLayout([torch.zeros(4, 2)], 5)
    with pytest.raises(ValueError, match="no KV cache"):
        KvLayout([], 5)


def test_checksum_sees_one_bit() -> None:
    data = torch.zeros(1000, dtype=torch.int64)
    clean = checksum(data)
    data[517] = 1 << 40
    assert checksum(data) != clean
