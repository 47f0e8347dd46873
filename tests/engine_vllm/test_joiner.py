"""Records and text come on two ways: whatever the order and the lag, nothing is lost, doubled or stuck."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.protocol import RequestUpdate, StepEvent
from engine.vllm.joiner import StepJoiner
from engine.vllm.messages import DecodeRecords, RequestRecord, StepRecord

LAG_S = 1.0


def record(step: int, produced: dict[str, tuple[list[int], int]]) -> StepRecord:
    """Record of a step: request -> (tokens of the step, tokens so far); as the step scheduler does, decodes apart."""
    decodes = {i: (tokens[0], total) for i, (tokens, total) in produced.items() if len(tokens) == 1 and total > 1}
    requests = [
        RequestRecord(i, tokens=tokens, produced=total, kv_blocks=2)
        for i, (tokens, total) in produced.items()
        if i not in decodes
    ]
    columns = [
        list(column) for column in zip(*((i, t, n, n + 9, 2, 0, 0) for i, (t, n) in decodes.items()), strict=True)
    ]
    shape = (1.0, 1.0, 0.0, 0.0, 0.0)
    return StepRecord(
        *(step, 0.0, float(step), 0.1, 0.1, 0.0, 0.0, 50, 1, 1, shape, requests),
        decodes=DecodeRecords(*columns, planned_tokens=1) if columns else None,
    )


def of(events: list[StepEvent], request_id: str) -> list[RequestUpdate]:
    """Updates of one request."""
    return [update for event in events for update in event.updates if update.request_id == request_id]


def test_tokens_and_state_of_a_step_ride_together() -> None:
    joiner = StepJoiner(LAG_S, free_blocks=60)
    joiner.open("a")
    joiner.add_record(record(1, {"a": ([5], 1)}), 0.0)
    assert joiner.take(0.1) == []
    joiner.add_output("a", (5,), "five")
    (event,) = joiner.take(0.2)
    assert (event.step, event.free_blocks) == (1, 50)
    assert event.updates[0].token_ids == (5,)
    assert event.updates[0].text == "five"


def test_text_ahead_of_its_record_waits_for_it() -> None:
    joiner = StepJoiner(LAG_S, free_blocks=60)
    joiner.open("a")
    joiner.add_output("a", (5,), "five", finish_reason="length")
    assert joiner.take(0.1) == []
    joiner.add_record(record(1, {"a": ([5], 1)}), 0.0)
    (event,) = joiner.take(0.2)
    assert event.updates[0].finish_reason == "length"
    assert "a" not in joiner


def test_lagging_text_does_not_hold_the_state_back() -> None:
    joiner = StepJoiner(LAG_S, free_blocks=60)
    joiner.open("a")
    joiner.open("b")
    joiner.add_output("b", (7,), "seven")
    joiner.add_record(record(1, {"a": ([5], 1), "b": ([7], 1)}), 0.0)
    assert joiner.next_deadline_s() == LAG_S
    (event,) = joiner.take(LAG_S)
    assert [update.token_ids for update in event.updates] == [(), (7,)]
    assert joiner.next_deadline_s() is None
    joiner.add_output("a", (5,), "five", finish_reason="stop")
    (late,) = joiner.take(LAG_S + 0.1)
    assert late.batch_tokens == 0
    assert (late.updates[0].token_ids, late.updates[0].finish_reason) == ((5,), "stop")


def test_cancellation_needs_no_step() -> None:
    joiner = StepJoiner(LAG_S, free_blocks=60)
    joiner.open("a")
    joiner.add_output("a", finish_reason="cancelled")
    (event,) = joiner.take(0.0)
    assert (event.step, event.free_blocks, event.updates[0].finish_reason) == (0, 60, "cancelled")


def test_tokens_after_a_stop_string_are_dropped() -> None:
    """vLLM's core goes on for a step after the text has ended."""
    joiner = StepJoiner(LAG_S, free_blocks=60)
    joiner.open("a")
    joiner.add_output("a", (5,), "end", finish_reason="stop")
    joiner.add_record(record(1, {"a": ([5], 1)}), 0.0)
    joiner.add_record(record(2, {"a": ([6], 2)}), 0.0)
    events = joiner.take(0.0)
    assert [update.token_ids for update in of(events, "a")] == [(5,)]
    assert [event.step for event in events] == [1, 2]


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[str, object]], dict[str, list[int]]]:
    """Two ways of messages, merged in any order, and the tokens that each request was given."""
    names = ["a", "b", "c"][: draw(st.integers(1, 3))]
    totals = dict.fromkeys(names, 0)
    records: list[tuple[str, object]] = []
    outputs: list[tuple[str, object]] = []
    given_tokens: dict[str, list[int]] = {name: [] for name in names}
    for step in range(1, draw(st.integers(1, 8)) + 1):
        produced = {}
        for name in draw(st.lists(st.sampled_from(names), unique=True)):
            tokens = draw(st.lists(st.integers(0, 99), max_size=3))
            totals[name] += len(tokens)
            given_tokens[name] += tokens
            produced[name] = (tokens, totals[name])
            if tokens:
                outputs.append(("output", (name, tuple(tokens), "".join(f"<{t}>" for t in tokens), "")))
        records.append(("record", record(step, produced)))
    outputs += [("output", (name, (), "", "length")) for name in names]
    merged: list[tuple[str, object]] = []
    while records or outputs:
        source = records if records and (not outputs or draw(st.booleans())) else outputs
        merged.append(source.pop(0))
        if draw(st.booleans()):
            merged.append(("take", draw(st.floats(0.0, 2 * LAG_S))))
    return merged, given_tokens


@settings(max_examples=300, deadline=None)
@given(histories())
def test_nothing_is_lost_doubled_or_stuck(history: tuple[list[tuple[str, object]], dict[str, list[int]]]) -> None:
    messages, tokens = history
    joiner = StepJoiner(LAG_S, free_blocks=60)
    for name in tokens:
        joiner.open(name)
    now, events = 0.0, []
    for kind, message in messages:
        if kind == "record":
            joiner.add_record(message, now)  # type: ignore[arg-type]
        elif kind == "output":
            joiner.add_output(*message[:3], finish_reason=message[3])  # type: ignore[index, misc]
        else:
            now += message  # type: ignore[operator]
            events += joiner.take(now)
    events += joiner.take(now + LAG_S)
    for name, expected in tokens.items():
        updates = of(events, name)
        assert [t for update in updates for t in update.token_ids] == expected
        assert "".join(update.text for update in updates) == "".join(f"<{t}>" for t in expected)
        assert [update.finish_reason for update in updates if update.finish_reason] == ["length"]
        assert updates[-1].finish_reason == "length"
        assert name not in joiner
    steps = [event.step for event in events]
    assert steps == sorted(steps)
    assert sum(event.batch_tokens > 0 for event in events) == sum(kind == "record" for kind, _ in messages)
