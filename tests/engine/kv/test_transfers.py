"""A transfer sends every wanted block of every layer once, and never before it was computed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kv.config import TransferKey
from engine.kv.layout import Piece
from engine.kv.transfers import IncomingTransfer, OutgoingTransfer

KEY = TransferKey("t", 0)


@given(
    layers=st.integers(1, 5),
    total=st.integers(1, 12),
    ready_from=st.integers(0, 11),
    max_blocks=st.integers(1, 40),
    order=st.lists(st.sampled_from(["compute", "send", "ready"]), max_size=80),
    chunk=st.integers(1, 5),
    hold_back=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_every_block_once_and_only_after_it_was_computed(
    layers: int, total: int, ready_from: int, max_blocks: int, order: list[str], chunk: int, hold_back: bool
) -> None:
    transfer = OutgoingTransfer(KEY, layers, lease_s=10.0, hold_back=hold_back)
    transfer.grow(list(range(total)), total)
    computed = [0] * layers
    wanted_from = min(ready_from, total - 1)
    wanted = {(layer, block) for layer in range(layers) for block in range(wanted_from, total)}
    sent: list[tuple[int, int]] = []
    is_ready = False

    def compute() -> None:
        layer = min(range(layers), key=lambda i: (computed[i], i))
        computed[layer] = min(total, computed[layer] + chunk)
        transfer.computed(layer, computed[layer], None)

    def send() -> None:
        with transfer.lock:
            assert transfer.has_work(max_blocks) or not transfer.complete()
            found = transfer.next_piece(max_blocks)
        if found is None:
            # Nothing computed waits, unless for the next layer of the same step.
            if is_ready and (not hold_back or len(set(computed)) == 1):
                assert len(sent) == sum(max(0, blocks - wanted_from) for blocks in computed)
            return
        piece, _ = found
        assert is_ready
        assert piece.layers * piece.blocks <= max(max_blocks, 1)
        for layer in range(piece.layer_start, piece.layer_end):
            for block in range(piece.block_start, piece.block_end):
                assert block < computed[layer]
                sent.append((layer, block))

    for step in [*order, "ready", *["compute"] * (layers * total), *["send"] * (layers * total + 1)]:
        if step == "compute":
            compute()
        elif step == "ready":
            transfer.ready(wanted_from)
            is_ready = True
        else:
            send()
    assert sorted(sent) == sorted(wanted)
    with transfer.lock:
        assert transfer.complete()


def test_an_ended_transfer_sends_nothing() -> None:
    transfer = OutgoingTransfer(KEY, 1, lease_s=10.0)
    transfer.grow([0], 1)
    transfer.ready(0)
    transfer.computed(0, 1, None)
    assert transfer.end("cancelled")
    assert not transfer.end("again")
    assert transfer.reason == "cancelled"
    with transfer.lock:
        assert transfer.next_piece(10) is None
        assert not transfer.has_work(10)


def test_a_message_on_the_host_waits_for_the_next_layer_but_not_for_the_next_step() -> None:
    transfer = OutgoingTransfer(KEY, 3, lease_s=10.0, hold_back=True)
    transfer.grow([0, 1, 2, 3], 4)
    transfer.ready(0)
    pieces = []
    for step in (2, 4):
        for layer in range(3):
            transfer.computed(layer, step, None)
            with transfer.lock:
                while found := transfer.next_piece(4):
                    pieces.append((step, layer, found[0]))
    assert pieces == [
        (2, 1, Piece(0, 2, 0, 2)),
        (2, 2, Piece(2, 3, 0, 2)),
        (4, 1, Piece(0, 2, 2, 4)),
        (4, 2, Piece(2, 3, 2, 4)),
    ]


def test_a_consumer_refuses_what_it_did_not_ask_for() -> None:
    transfer = IncomingTransfer(KEY, [5, 6, 7], first_block=1, layers=2, lease_s=10.0)
    assert transfer.missing == 4
    assert transfer.fits(Piece(0, 2, 1, 3))
    assert not transfer.fits(Piece(0, 2, 0, 1))
    assert not transfer.fits(Piece(0, 2, 2, 4))
