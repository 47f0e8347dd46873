"""Which workers a request is offered to: pairs that fit, and among them the decode worker that holds its prefix."""

from __future__ import annotations

from functools import partial

import grpc
import pytest

from services.common.metrics import CollectorRegistry
from services.controller.failover import Failover
from services.controller.metrics import Metrics
from services.controller.mirror import ReplicaMirror
from services.controller.relay import Relay
from services.controller.replica import Replica
from services.controller.request import LiveRequest
from services.controller.targets import Target, targets, why_alone, why_not_paired, with_prefix
from services.controller.worker_events import WorkerEvents
from tests.services.controller.making import make_request
from tests.services.controller.peer import info

BLOCK = 16
PROMPT = tuple(range(10 * BLOCK))


def replica(name: str, layout: str = "same", kv_address: str = "kv:1") -> Replica:
    """A worker that is not connected, whose role is the first part of its name."""
    metrics = Metrics(CollectorRegistry())
    relay = Relay(lambda _: 10, lambda _: None, lambda *_: None, metrics)
    failover = Failover(3, lambda _: None, lambda *_: None, metrics)
    events = WorkerEvents(relay, failover, metrics, lambda _: None, lambda: None)
    facts = info(name, role=name.split("-")[0], kv_address=kv_address, kv_layout=layout, prefix_caching=True)
    made = Replica(name, "nowhere:1", facts, events, lambda: None, lambda _: "", partial(grpc.aio.insecure_channel))  # type: ignore[arg-type, return-value]
    made.placed.mirror = ReplicaMirror(name, facts)
    return made


def mirror(of: Replica) -> ReplicaMirror:
    assert of.mirror is not None
    return of.mirror


def names(found: list[Target]) -> list[str]:
    return [str(target) for target in found]


def holds(decode: Replica, tokens: int) -> None:
    """Let a worker have the first tokens of PROMPT in its prefix cache."""
    mirror(decode).prefilled(make_request(prompt=PROMPT[:tokens]), 0)


def fill(decode: Replica, tokens: int) -> None:
    """Let a worker's memory be taken by so many tokens."""
    mirror(decode).free_blocks -= tokens // BLOCK


async def test_workers_whose_kv_differs_are_never_paired_and_it_is_said_why() -> None:
    prefill, odd, fitting = replica("prefill-0"), replica("decode-0", layout="other"), replica("decode-1")
    first, last = targets([prefill, odd, fitting])
    assert names(first) == ["prefill-0 and decode-1"]
    assert names(last) == ["decode-0", "decode-1"]
    assert "[same], decode-0 [other]" in why_not_paired(prefill.info, odd.info)
    assert "decode-0 [other]" in why_alone(odd, [prefill, odd, fitting])
    assert why_alone(prefill, [prefill, odd, fitting]) == ""
    assert why_alone(odd, [odd, fitting]) == ""
    first, last = targets([prefill, odd])
    assert names(first) == ["decode-0", "prefill-0"]
    assert last == []
    assert "--kv-exchange" in why_alone(replica("decode-2", kv_address=""), [prefill])


async def test_the_decode_worker_that_holds_the_prefix_is_asked_first() -> None:
    prefill, empty, holder = replica("prefill-0"), replica("decode-0"), replica("decode-1")
    request = make_request(prompt=PROMPT)
    order, _ = targets([prefill, empty, holder])
    assert names(order) == ["prefill-0 and decode-0"]
    assert with_prefix(request, order, [prefill, empty, holder]) == order
    holds(holder, len(PROMPT))
    found = with_prefix(request, order, [prefill, empty, holder])
    assert names(found) == ["prefill-0 and decode-1", "prefill-0 and decode-0"]
    assert with_prefix(make_request(prompt=(7,) * 100), order, [prefill, empty, holder]) == order


@pytest.mark.parametrize(("taken", "first"), [(0.0, "decode-1"), (0.15, "decode-1"), (0.6, "decode-0")])
async def test_a_held_prefix_is_worth_a_certain_load(taken: float, first: str) -> None:
    prefill, empty, holder = replica("prefill-0"), replica("decode-0"), replica("decode-1")
    holds(holder, len(PROMPT))
    fill(holder, int(taken * mirror(holder).limits.total_blocks * BLOCK))
    order = [Target(empty, prefill)]
    found = with_prefix(make_request(prompt=PROMPT), order, [prefill, empty, holder])
    assert found[0].decode.worker_id == first


async def test_more_of_the_prefix_is_worth_more() -> None:
    prefill, some, more = replica("prefill-0"), replica("decode-0"), replica("decode-1")
    holds(some, 2 * BLOCK)
    holds(more, 8 * BLOCK)
    found = with_prefix(make_request(prompt=PROMPT), [Target(some, prefill)], [prefill, some, more])
    assert names(found) == ["prefill-0 and decode-1", "prefill-0 and decode-0"]
    found = with_prefix(make_request(prompt=PROMPT), [Target(more, prefill)], [prefill, some, more])
    assert names(found) == ["prefill-0 and decode-1"]


async def test_a_holder_of_another_form_of_kv_is_no_reason() -> None:
    prefill, empty, holder = replica("prefill-0"), replica("decode-0"), replica("decode-1", layout="other")
    holds(holder, len(PROMPT))
    order = [Target(empty, prefill), Target(replica("both-0"))]
    assert with_prefix(make_request(prompt=PROMPT), order, [prefill, empty, holder]) == order


async def test_a_prefill_worker_is_known_to_hold_what_it_has_computed() -> None:
    prefill = replica("prefill-0")
    request: LiveRequest = make_request(prompt=PROMPT)
    assert mirror(prefill).cached_tokens(request) == 0
    request.output += [1] * (3 * BLOCK)  # the decode worker has been quick
    mirror(prefill).handed_over(request, 0)
    again = make_request(prompt=(*PROMPT, *request.output))
    assert mirror(prefill).cached_tokens(again) == len(PROMPT)
