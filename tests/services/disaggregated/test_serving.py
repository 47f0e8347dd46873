"""The same API served by prefill and decode workers: whole processes, emulated engines, the real KV transport."""

from __future__ import annotations

import json
import urllib.request

import pytest

from protos.slos.v1 import admin_pb2
from tests.services.controller.load import generate_request, prompt_of, run_all
from tests.services.disaggregated.conftest import Pairs, Undisturbed, load, loose, tokens

pytestmark = pytest.mark.timeout(300)


def test_tokens_are_those_of_a_co_located_worker(shared: Pairs, undisturbed: Undisturbed) -> None:
    expected = undisturbed(30)
    shared.restore("prefill-0", "decode-0")
    handed_over, recomputed = shared.handed_over(), shared.recomputed()
    assert tokens(run_all(shared.cluster.grpc_address, load(30, "paired"), gap_s=0.02)) == expected
    assert shared.handed_over() - handed_over >= 25  # a worker alone may promise some, where the pair cannot
    assert shared.recomputed() == recomputed
    shared.settled()
    shared.restore("both-0")
    assert tokens(run_all(shared.cluster.grpc_address, load(30, "whole"), gap_s=0.02)) == expected
    shared.settled()
    shared.restore("prefill-0", "decode-0")


def test_openai_api_is_served_by_a_pair(shared: Pairs) -> None:
    shared.restore("prefill-0", "decode-0")
    before = shared.handed_over()
    body = {
        "model": "tiny",
        "prompt": "tell me of the sea " * 20,
        "max_tokens": 12,
        "temperature": 0,
        "slo": {"ttft_ms": 20_000, "tpot_ms": 5_000},
    }
    request = urllib.request.Request(
        f"{shared.cluster.url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        said = json.load(answer)
    assert said["usage"]["completion_tokens"] > 0
    assert said["choices"][0]["text"]
    assert shared.handed_over() == before + 1
    shared.settled()


def test_a_decode_worker_that_holds_the_prompt_serves_it_alone(shared: Pairs) -> None:
    shared.restore("prefill-0")
    shared.start("decode-1", "--prefix-caching")
    shared.restore("prefill-0", "decode-1")

    def asked(name: str) -> list[list[int]]:
        requests = [
            generate_request(prompt_of(seed, 100, 300), request_id=f"{name}-{seed}", slo=loose()) for seed in range(5)
        ]
        return tokens(run_all(shared.cluster.grpc_address, requests))

    before = shared.handed_over()
    first = asked("first")
    assert shared.handed_over() == before + 5
    assert asked("second") == first
    assert shared.handed_over() == before + 5
    shared.settled()


def test_mixed_fleet_serves_on_pairs_and_on_co_located_workers(shared: Pairs, undisturbed: Undisturbed) -> None:
    expected = undisturbed(30)
    shared.restore("prefill-0", "decode-0", "both-0")
    answers = run_all(shared.cluster.grpc_address, load(30, "mixed"), gap_s=0.02)
    assert tokens(answers) == expected
    used = {promise.replica for answer in answers for promise in answer.promises}
    assert {"both-0", "decode-0"} <= used
    shared.settled()


def test_roles_change_under_load_without_losing_a_request(shared: Pairs, undisturbed: Undisturbed) -> None:
    expected = undisturbed(30)
    shared.restore("prefill-0", "decode-0")

    def swap() -> None:
        for replica, role in (("prefill-0", "decode"), ("decode-0", "prefill")):
            shared.cluster.admin.SetReplicaRole(
                admin_pb2.SetReplicaRoleRequest(replica=replica, role=role), timeout=10.0
            )

    answers = run_all(shared.cluster.grpc_address, load(30, "swap"), gap_s=0.02, after=(200, swap))
    assert tokens(answers) == expected
    roles = {name: replica.role for name, replica in shared.cluster.replicas().items() if replica.state == "ready"}
    assert roles == {"prefill-0": "decode", "decode-0": "prefill"}
    before = shared.handed_over()
    assert tokens(run_all(shared.cluster.grpc_address, load(5, "swapped"))) == expected[:5]
    assert shared.handed_over() > before
    shared.settled()
    for name in roles:
        shared.cluster.end(name)
