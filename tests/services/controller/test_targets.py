"""Which workers a request is offered to: pairs that fit, and among them the decode worker that holds its prefix."""

from __future__ import annotations

from functools import partial

import grpc

from scheduling.routing import get as get_routing
from scheduling.types import Candidate, Slo
from services.common.metrics import CollectorRegistry
from services.controller.failover import Failover
from services.controller.metrics import Metrics
from services.controller.mirror import ReplicaMirror
from services.controller.relay import Relay
from services.controller.replica import Replica
from services.controller.request import LiveRequest
from services.controller.targets import Target, Targets, why_alone, why_not_paired
from services.controller.worker_events import WorkerEvents
from tests.services.controller.making import make_request
from tests.services.controller.peer import info

BLOCK = 16
PROMPT = tuple(range(10 * BLOCK))


def replica(name: str, layout: str = "same", kv_address: str = "kv:1") -> Replica:
    """A worker that is not connected, whose role is the first part of its name."""
    metrics = Metrics(CollectorRegistry())
    relay = Relay(lambda _: 10, lambda _: None, lambda *_: None, lambda _: None, metrics)
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


async def test_workers_whose_kv_differs_are_never_paired_and_it_is_said_why() -> None:
    prefill, odd, fitting = replica("prefill-0"), replica("decode-0", layout="other"), replica("decode-1")
    found = Targets([prefill, odd, fitting])
    assert names(found.ordered()) == ["prefill-0 and decode-1"]
    assert asked(make_request(prompt=PROMPT), [prefill, odd, fitting])[1:] == ["decode-0", "decode-1"]
    assert "[same], decode-0 [other]" in why_not_paired(prefill.info, odd.info)
    assert "decode-0 [other]" in why_alone(odd, [prefill, odd, fitting])
    assert why_alone(prefill, [prefill, odd, fitting]) == ""
    assert why_alone(odd, [odd, fitting]) == ""
    found = Targets([prefill, odd])
    assert names(found.ordered()) == ["decode-0", "prefill-0"]
    assert asked(make_request(prompt=PROMPT), [prefill, odd]) == ["decode-0", "prefill-0"]
    assert "--kv-exchange" in why_alone(replica("decode-2", kv_address=""), [prefill])


def asked(request: LiveRequest, replicas: list[Replica]) -> list[str]:
    """Who is asked for a request, in order."""
    slo = Slo(1.0, 0.1)
    candidate = Candidate(request.wire_id, 0.0, request.prompt_tokens, slo, 10, 10)
    return names(Targets(replicas, [request]).ask_order(0.0, candidate, get_routing("sequential")))


async def test_the_decode_worker_that_holds_a_good_part_of_the_prompt_is_asked_first() -> None:
    _, some, holder = workers = [replica("prefill-0"), replica("decode-0"), replica("decode-1")]
    request = make_request(prompt=PROMPT)
    assert asked(request, workers)[0] == "prefill-0 and decode-0"
    holds(some, 2 * BLOCK)
    assert asked(request, workers)[0] == "prefill-0 and decode-0", "a fifth of it is not enough"
    holds(holder, 8 * BLOCK)
    assert asked(request, workers)[:2] == ["decode-1", "prefill-0 and decode-0"]
    assert asked(make_request(prompt=(7,) * 100), workers)[0] == "prefill-0 and decode-0"


async def test_a_holder_of_another_form_of_kv_serves_alone() -> None:
    workers = [replica("prefill-0"), replica("decode-0"), replica("decode-1", layout="other")]
    holds(workers[2], len(PROMPT))
    assert asked(make_request(prompt=PROMPT), workers)[:2] == ["decode-1", "prefill-0 and decode-0"]


async def test_who_routing_takes_has_the_first_word_without_a_promise() -> None:
    workers = [replica("prefill-0"), replica("decode-0"), replica("decode-1")]
    request = make_request(prompt=PROMPT)
    candidate = Candidate(request.wire_id, 0.0, request.prompt_tokens, Slo(1.0, 0.1), 10, 10)
    first = Targets(workers, [request]).first(0.0, candidate, get_routing("sequential"))
    assert str(first) == "prefill-0 and decode-0"


async def test_a_prefill_worker_is_known_to_hold_what_it_has_computed() -> None:
    prefill = replica("prefill-0")
    request: LiveRequest = make_request(prompt=PROMPT)
    assert mirror(prefill).cached_tokens(request) == 0
    request.output += [1] * (3 * BLOCK)  # the decode worker has been quick
    mirror(prefill).handed_over(request, 0)
    again = make_request(prompt=(*PROMPT, *request.output))
    assert mirror(prefill).cached_tokens(again) == len(PROMPT)
