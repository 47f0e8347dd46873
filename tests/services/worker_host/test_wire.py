from __future__ import annotations

import dataclasses

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.protocol import EngineRequest, RequestRejected, RequestUpdate, SamplingSpec, StepEvent, TokenLogprob
from protos.slos.v1 import common_pb2, worker_pb2
from services.worker_host import wire
from tests.services.worker_host.driver import submission


def convert(submit: worker_pb2.Submit, now_s: float = 100.0, rtt_s: float = 0.0) -> EngineRequest:
    return wire.engine_request(submit, now_s, rtt_s)


def test_deadlines_are_counted_from_receipt_less_half_the_round_trip() -> None:
    submit = submission("r", age_us=3_000_000, ttft_remaining_us=-500_000, next_token_remaining_us=250_000)
    request = convert(submit, now_s=100.0, rtt_s=0.02)
    assert request.arrival_s == pytest.approx(96.99)
    assert request.first_token_due_s == pytest.approx(99.49)
    assert request.next_token_due_s == pytest.approx(100.24)
    assert convert(submission("r")).next_token_due_s is None


def test_unset_sampling_is_the_default_and_zero_is_zero() -> None:
    assert convert(submission("r", sampling=common_pb2.Sampling())).sampling == SamplingSpec()
    given_zero = common_pb2.Sampling(temperature=0.0, logprobs=0, seed=0, top_k=0)
    sampling = convert(submission("r", sampling=given_zero)).sampling
    assert (sampling.temperature, sampling.logprobs, sampling.seed) == (0.0, 0, 0)


def test_every_sampling_field_arrives() -> None:
    spec = SamplingSpec(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.125,
        seed=-3,
        stop=("a", "b"),
        stop_token_ids=(4, 5),
        max_tokens=9,
        min_tokens=2,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        ignore_eos=True,
        logprobs=3,
        json_schema="{}",
        json_object=True,
        logit_bias={3: -1.5},
    )
    default = SamplingSpec()
    for field in dataclasses.fields(SamplingSpec):
        assert getattr(spec, field.name) != getattr(default, field.name), f"{field.name} would not be tested"
    message = common_pb2.Sampling(**dataclasses.asdict(spec))
    assert convert(submission("r", sampling=message)).sampling == spec


def test_thinking_needs_both_the_marker_and_its_pace() -> None:
    both = convert(submission("r", thinking_tpot_us=20_000, thinking_end_token_id=0))
    assert (both.thinking_tpot_s, both.thinking_end_token_id) == (0.02, 0)
    for half in ({"thinking_tpot_us": 20_000}, {"thinking_end_token_id": 5}):
        request = convert(submission("r", **half))
        assert (request.thinking_tpot_s, request.thinking_end_token_id) == (None, None)


def test_kv_transfer_arrives() -> None:
    transfer = worker_pb2.KvTransfer(
        transfer_id="t", generation=3, producer=True, peer="p", peer_address="h:1", lease_ms=1500
    )
    spec = convert(submission("r", kv_transfer=transfer)).kv_transfer
    assert spec is not None
    assert dataclasses.astuple(spec) == ("t", 3, True, "p", "h:1", 1.5)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_whatever_parses_is_converted_or_rejected_with_a_reason(payload: bytes) -> None:
    submit = worker_pb2.Submit()
    try:
        submit.ParseFromString(payload)
    except DecodeError:
        return
    try:
        accepted = convert(submit)
    except RequestRejected as error:
        refused = error
    else:
        assert accepted.request_id
        return
    assert (refused.code, bool(refused.reason)) == ("INVALID_ARGUMENT", True)


def test_step_carries_every_field_of_an_update() -> None:
    update = RequestUpdate(
        request_id="r",
        token_ids=(1, 2),
        text="ab",
        logprobs=((TokenLogprob(1, -0.5, 1, "a"), TokenLogprob(1, -0.5, 1, "a")),),
        finish_reason="error",
        error="why",
        prefill_remaining=3,
        context_tokens=4,
        kv_blocks=5,
        preemptions=6,
        cached_tokens=7,
        accepted_draft_tokens=8,
        draft_tokens=9,
        accept_rate=0.7,
        draft_share=0.4,
        relegated=True,
        kv_recomputed=True,
        kv_handle="there",
    )
    default = RequestUpdate("")
    for field in dataclasses.fields(RequestUpdate):
        assert getattr(update, field.name) != getattr(default, field.name), f"{field.name} would not be tested"
    event = wire.step_event(StepEvent(1, 10.0, 0.0125, 0.01, (update,), 11, 12, 13))
    step = event.step
    assert (step.duration_us, step.predicted_us) == (12_500, 10_000)
    assert (step.free_blocks, step.batch_tokens, step.batch_requests) == (11, 12, 13)
    assert step.ended_us == 10_000_000
    (message,) = step.requests
    assert message.finish_reason == common_pb2.FINISH_REASON_ERROR
    assert message.logprobs[0].tokens[0].logprob == -0.5
    same = ("request_id", "text", "error", "prefill_remaining", "context_tokens", "kv_blocks", "preemptions")
    more = ("cached_tokens", "accepted_draft_tokens", "draft_tokens", "accept_rate", "draft_share")
    last = ("relegated", "kv_recomputed", "kv_handle")
    assert all(getattr(message, name) == getattr(update, name) for name in same + more + last)
    assert list(message.token_ids) == [1, 2]


def test_configure_leaves_unset_settings_alone() -> None:
    assert dataclasses.astuple(wire.step_settings(worker_pb2.Configure())) == (None, None, None, None)
    settings_ = wire.step_settings(worker_pb2.Configure(policy="slos", time_margin=1.5, best_effort_floor=0.0))
    assert dataclasses.astuple(settings_) == ("slos", 1.5, 0.0, None)
