"""A controller process with emulated workers: what clients are told and what they get."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest

from protos.slos.v1 import admin_pb2, client_pb2, client_pb2_grpc, common_pb2
from tests.fixtures.controller import ControlledCluster
from tests.services.controller.load import ask, ask_all, generate_request, prompt_of, run_all

IMPOSSIBLE = common_pb2.SloSpec(slo_class="chatbot", ttft_ms=1.0)
LOOSE = common_pb2.SloSpec(slo_class="chatbot", ttft_ms=60_000.0, tpot_ms=5_000.0)


def test_a_promise_comes_first_and_the_outcome_last(healthy: ControlledCluster) -> None:
    messages: list[client_pb2.GenerateResponse] = []

    async def one() -> None:
        async with grpc.aio.insecure_channel(healthy.grpc_address) as channel:
            stub = client_pb2_grpc.ClientStub(channel)
            await ask(stub, generate_request(prompt_of(1), slo=LOOSE, max_tokens=12), messages.append)

    asyncio.run(one())
    first, last = messages[0], messages[-1]
    assert first.promise.admission == common_pb2.ADMISSION_STANDARD
    assert first.promise.replica in ("worker-0", "worker-1")
    assert first.promise.ttft_ms == 60_000.0
    assert last.finish_reason == common_pb2.FINISH_REASON_LENGTH
    assert last.prompt_tokens == len(prompt_of(1))
    assert last.output_tokens == sum(len(message.token_ids) for message in messages) == 12
    assert last.outcome.promised
    assert last.outcome.promise_kept
    assert last.outcome.attained
    assert 0 < last.outcome.ttft_ms < 60_000
    assert not any(message.finish_reason for message in messages[:-1])


def test_greedy_output_does_not_depend_on_the_company(healthy: ControlledCluster) -> None:
    requests = [generate_request(prompt_of(seed), slo=LOOSE, max_tokens=20) for seed in range(12)]
    together = run_all(healthy.grpc_address, requests)
    alone = run_all(healthy.grpc_address, requests[:2])
    assert [answer.token_ids for answer in alone] == [answer.token_ids for answer in together[:2]]
    assert all(answer.finish == "length" for answer in together)


def test_what_cannot_be_promised_is_best_effort_with_the_reason(healthy: ControlledCluster) -> None:
    (answer,) = run_all(healthy.grpc_address, [generate_request(prompt_of(2), slo=IMPOSSIBLE)])
    assert answer.promises[0].admission == common_pb2.ADMISSION_BEST_EFFORT
    assert "first token late" in answer.promises[0].reason
    assert answer.finish == "length"
    assert answer.last is not None
    assert not answer.last.outcome.promised
    assert not answer.last.outcome.attained


def test_reject_is_an_error_with_the_reason_and_a_time_to_retry(healthy: ControlledCluster) -> None:
    slo = common_pb2.SloSpec(ttft_ms=1.0, on_miss=common_pb2.ON_MISS_REJECT)
    (answer,) = run_all(healthy.grpc_address, [generate_request(prompt_of(3), slo=slo)])
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "first token late" in str(answer.error.details())
    trailing = dict(answer.error.trailing_metadata() or ())
    assert int(trailing["retry-after-ms"]) >= 1000


def test_a_request_id_in_use_is_refused_and_free_again_afterwards(healthy: ControlledCluster) -> None:
    request = generate_request(prompt_of(4), request_id="twice", slo=LOOSE, max_tokens=60)
    first, second = run_all(healthy.grpc_address, [request, request])
    errors = [answer.error for answer in (first, second) if answer.error is not None]
    assert [error.code() for error in errors] == [grpc.StatusCode.ALREADY_EXISTS]
    (again,) = run_all(healthy.grpc_address, [request])
    assert again.finish == "length"


def test_cancel_ends_the_stream_with_what_there_was(healthy: ControlledCluster) -> None:
    def cancel() -> None:
        healthy.client.Cancel(client_pb2.CancelRequest(request_id="long"), timeout=5.0)

    request = generate_request(prompt_of(5), request_id="long", slo=LOOSE, max_tokens=2000)
    (answer,) = run_all(healthy.grpc_address, [request], after=(5, cancel))
    assert answer.finish == "cancelled"
    assert 0 < len(answer.token_ids) < 2000
    with pytest.raises(grpc.RpcError) as caught:
        cancel()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_client_that_goes_away_frees_everything(healthy: ControlledCluster) -> None:
    async def leave() -> None:
        async with grpc.aio.insecure_channel(healthy.grpc_address) as channel:
            stub = client_pb2_grpc.ClientStub(channel)
            calls = [
                stub.Generate(generate_request(prompt_of(seed), request_id=f"left-{seed}", slo=LOOSE, max_tokens=2000))
                for seed in range(6)
            ]
            for call in calls:
                await call.read()
                call.cancel()

    asyncio.run(leave())
    healthy.settled()
    info = healthy.admin.GetRequest(admin_pb2.GetRequestRequest(request_id="left-0"), timeout=5.0)
    assert info.finish_reason == common_pb2.FINISH_REASON_CANCELLED


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        ({"model": "gpt-9"}, "NOT_FOUND", "models: tiny"),
        ({"slo": common_pb2.SloSpec(slo_class="chatbto")}, "INVALID_ARGUMENT", "did you mean 'chatbot'"),
        ({"slo": common_pb2.SloSpec(ttft_ms=-5)}, "INVALID_ARGUMENT", "positive"),
        ({"slo": common_pb2.SloSpec(ttft_ms=5, ttft_slowdown=2)}, "INVALID_ARGUMENT", "excludes"),
        ({"tenant": "nobody"}, "INVALID_ARGUMENT", "tenant"),
        ({"request_id": "a b"}, "INVALID_ARGUMENT", "letters"),
        ({"prompt_tokens": client_pb2.TokenIds(ids=[])}, "INVALID_ARGUMENT", "empty"),
        ({"prompt_tokens": client_pb2.TokenIds(ids=[10**6])}, "INVALID_ARGUMENT", "vocabulary"),
        ({"prompt_tokens": client_pb2.TokenIds(ids=[1] * 9000)}, "INVALID_ARGUMENT", "window is 8192"),
        ({"sampling": common_pb2.Sampling(max_tokens=9000)}, "INVALID_ARGUMENT", "too large"),
        ({"sampling": common_pb2.Sampling(temperature=-1)}, "INVALID_ARGUMENT", "temperature"),
        ({"sampling": common_pb2.Sampling(stop_token_ids=[-1])}, "INVALID_ARGUMENT", "stop_token_ids: token id -1"),
        ({"sampling": common_pb2.Sampling(logit_bias={10**6: 1})}, "INVALID_ARGUMENT", "logit_bias: token id 1000000"),
    ],
)
def test_bad_input_is_named(healthy: ControlledCluster, change: dict[str, object], code: str, word: str) -> None:
    request = generate_request(prompt_of(6))
    for name, value in change.items():
        request.ClearField(name)
        request.MergeFrom(client_pb2.GenerateRequest(**{name: value}))
    (answer,) = run_all(healthy.grpc_address, [request])
    assert answer.error is not None
    assert answer.error.code().name == code
    assert word in str(answer.error.details())


def test_a_seed_makes_sampling_repeatable(healthy: ControlledCluster) -> None:
    def sampled(seed: int) -> client_pb2.GenerateRequest:
        sampling = common_pb2.Sampling(temperature=1.0, seed=seed, ignore_eos=True, max_tokens=10)
        return generate_request(prompt_of(7), slo=LOOSE, sampling=sampling)

    one, same, other = run_all(healthy.grpc_address, [sampled(1), sampled(1), sampled(2)])
    assert one.token_ids == same.token_ids
    assert one.token_ids != other.token_ids


def test_a_prompt_that_is_cached_somewhere_is_planned_as_such(healthy: ControlledCluster) -> None:
    prompt = prompt_of(99, 1000, 1000)
    run_all(healthy.grpc_address, [generate_request(prompt, slo=LOOSE, max_tokens=2) for _ in range(2)])
    again = [generate_request([*prompt, 7], slo=LOOSE, max_tokens=2, request_id=f"cached-{n}") for n in range(2)]
    for answer in run_all(healthy.grpc_address, again):
        assert answer.last is not None
        assert answer.last.cached_tokens >= 960


def test_explain_and_history_tell_how_it_was_decided(healthy: ControlledCluster) -> None:
    yes = generate_request(prompt_of(8), request_id="explained", slo=LOOSE)
    no = generate_request(prompt_of(8), request_id="declined", slo=IMPOSSIBLE)
    run_all(healthy.grpc_address, [yes, no])
    told = healthy.admin.Explain(admin_pb2.ExplainRequest(request_id="explained"), timeout=5.0)
    assert "Promised on worker-" in told.summary
    plan = json.loads(told.plan_json)
    assert plan["accepted"] is True
    assert plan["plan"]["candidates"] >= 1
    told = healthy.admin.Explain(admin_pb2.ExplainRequest(request_id="declined"), timeout=5.0)
    assert told.summary.startswith("Best effort, because")
    info = healthy.admin.GetRequest(admin_pb2.GetRequestRequest(request_id="declined"), timeout=5.0)
    assert info.phase == "finished"
    assert any("no promise" in line for line in info.history)
    listed = healthy.admin.ListRequests(admin_pb2.ListRequestsRequest(limit=5), timeout=5.0).requests
    assert {"explained", "declined"} <= {entry.request_id for entry in listed}


async def test_a_burst_is_served_to_the_last_request(healthy: ControlledCluster) -> None:
    requests = [generate_request(prompt_of(seed, 500, 500), max_tokens=15) for seed in range(150)]
    answers = await ask_all(healthy.grpc_address, requests)
    assert [answer.finish for answer in answers] == ["length"] * 150
    outcomes = [answer.last.outcome for answer in answers if answer.last is not None]
    promised = [outcome for outcome in outcomes if outcome.promised]
    assert promised
    assert len(promised) < 150  # more came than two replicas can promise
