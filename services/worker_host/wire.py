"""Between the worker API's messages and the engine protocol's types."""

from __future__ import annotations

from typing import Any

import grpc

from engine.protocol import (
    EngineInfo,
    EngineRequest,
    KvTransferSpec,
    RequestRejected,
    RequestUpdate,
    SamplingSpec,
    StepEvent,
    StepSettings,
    TokenLogprob,
)
from protos.slos.v1 import common_pb2, worker_pb2
from services.common import clock
from services.common.rpc import PROTO_VERSION

ROLES = ("prefill", "decode", "both")

_FINISH_REASONS = {
    "": common_pb2.FINISH_REASON_UNSPECIFIED,
    "stop": common_pb2.FINISH_REASON_STOP,
    "length": common_pb2.FINISH_REASON_LENGTH,
    "cancelled": common_pb2.FINISH_REASON_CANCELLED,
    "error": common_pb2.FINISH_REASON_ERROR,
}


def engine_request(submit: worker_pb2.Submit, now_s: float, rtt_s: float) -> EngineRequest:
    """Return the request that a Submit asks for; RequestRejected when a field makes no sense.

    now_s is this process's clock at receipt, rtt_s the measured round trip to the controller.
    """
    if not submit.request_id:
        raise RequestRejected("INVALID_ARGUMENT", "request_id must not be empty")
    if submit.admission == common_pb2.ADMISSION_UNSPECIFIED:
        raise RequestRejected("INVALID_ARGUMENT", "admission must be standard or best effort")
    if submit.tpot_us <= 0 or submit.thinking_tpot_us < 0:
        raise RequestRejected("INVALID_ARGUMENT", "tpot_us must be positive and thinking_tpot_us not negative")
    if not 1 <= submit.prompt_tokens <= len(submit.token_ids):
        raise RequestRejected("INVALID_ARGUMENT", "prompt_tokens must lie between 1 and the number of token_ids")
    if min(submit.token_ids) < 0:
        raise RequestRejected("INVALID_ARGUMENT", "token_ids must not be negative")
    next_due_s = None
    if submit.HasField("next_token_remaining_us"):
        next_due_s = clock.due_s(submit.next_token_remaining_us, now_s, rtt_s)
    thinks = submit.HasField("thinking_end_token_id") and submit.thinking_tpot_us > 0
    return EngineRequest(
        request_id=submit.request_id,
        token_ids=tuple(submit.token_ids),
        prompt_tokens=submit.prompt_tokens,
        sampling=_sampling(submit.sampling),
        standard=submit.admission == common_pb2.ADMISSION_STANDARD,
        arrival_s=clock.due_s(-submit.age_us, now_s, rtt_s),
        first_token_due_s=clock.due_s(submit.ttft_remaining_us, now_s, rtt_s),
        tpot_s=submit.tpot_us / clock.MICROSECONDS,
        next_token_due_s=next_due_s,
        thinking_tpot_s=submit.thinking_tpot_us / clock.MICROSECONDS if thinks else None,
        thinking_end_token_id=submit.thinking_end_token_id if thinks else None,
        thinking_done=submit.thinking_done,
        expected_output_tokens=max(1, submit.expected_output_tokens),
        value=submit.value if submit.value > 0 else 1.0,
        slo_class=submit.slo_class,
        session_id=submit.session_id,
        kv_transfer=_kv_transfer(submit.kv_transfer) if submit.HasField("kv_transfer") else None,
        text_chars=submit.text_chars,
        hopeful=submit.hopeful,
    )


def _sampling(sampling: common_pb2.Sampling) -> SamplingSpec:
    default = SamplingSpec()

    def given(name: str, otherwise: Any) -> Any:
        return getattr(sampling, name) if sampling.HasField(name) else otherwise

    return SamplingSpec(
        temperature=given("temperature", default.temperature),
        top_p=given("top_p", default.top_p),
        top_k=given("top_k", default.top_k),
        min_p=given("min_p", default.min_p),
        seed=given("seed", default.seed),
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
        max_tokens=given("max_tokens", default.max_tokens),
        min_tokens=given("min_tokens", default.min_tokens),
        presence_penalty=given("presence_penalty", default.presence_penalty),
        frequency_penalty=given("frequency_penalty", default.frequency_penalty),
        repetition_penalty=given("repetition_penalty", default.repetition_penalty),
        ignore_eos=sampling.ignore_eos,
        logprobs=given("logprobs", default.logprobs),
        json_schema=sampling.json_schema,
        json_object=sampling.json_object,
        logit_bias=dict(sampling.logit_bias),
    )


def _kv_transfer(transfer: worker_pb2.KvTransfer) -> KvTransferSpec:
    if not transfer.transfer_id:
        raise RequestRejected("INVALID_ARGUMENT", "kv_transfer.transfer_id must not be empty")
    return KvTransferSpec(
        transfer_id=transfer.transfer_id,
        generation=transfer.generation,
        producer=transfer.producer,
        peer=transfer.peer,
        peer_address=transfer.peer_address,
        lease_s=transfer.lease_ms / 1000,
    )


def step_settings(configure: worker_pb2.Configure) -> StepSettings:
    """Return the settings that a Configure changes."""
    return StepSettings(
        policy=configure.policy or None,
        time_margin=configure.time_margin or None,
        best_effort_floor=configure.best_effort_floor if configure.HasField("best_effort_floor") else None,
    )


def step_event(step: StepEvent) -> worker_pb2.Event:
    """Return the message for a step; its age is filled in when it is sent."""
    return worker_pb2.Event(
        step=worker_pb2.Step(
            duration_us=round(step.duration_s * clock.MICROSECONDS),
            predicted_us=round(step.predicted_s * clock.MICROSECONDS),
            requests=[_request_step(update) for update in step.updates],
            free_blocks=step.free_blocks,
            batch_tokens=step.batch_tokens,
            batch_requests=step.batch_requests,
            ended_us=round(step.ended_s * clock.MICROSECONDS),
        )
    )


def _request_step(update: RequestUpdate) -> worker_pb2.RequestStep:
    return worker_pb2.RequestStep(
        request_id=update.request_id,
        token_ids=update.token_ids,
        text=update.text,
        logprobs=[_position(position) for position in update.logprobs],
        finish_reason=_FINISH_REASONS[update.finish_reason],
        error=update.error,
        prefill_remaining=update.prefill_remaining,
        context_tokens=update.context_tokens,
        kv_blocks=update.kv_blocks,
        preemptions=update.preemptions,
        cached_tokens=update.cached_tokens,
        accepted_draft_tokens=update.accepted_draft_tokens,
        draft_tokens=update.draft_tokens,
        accept_rate=update.accept_rate,
        draft_share=update.draft_share,
        relegated=update.relegated,
        kv_recomputed=update.kv_recomputed,
        kv_handle=update.kv_handle,
    )


def _position(position: tuple[TokenLogprob, ...]) -> common_pb2.PositionLogprobs:
    return common_pb2.PositionLogprobs(
        tokens=[
            common_pb2.TokenLogprob(token_id=one.token_id, logprob=one.logprob, rank=one.rank, text=one.text)
            for one in position
        ]
    )


def rejected(request_id: str, code: str, reason: str) -> worker_pb2.Event:
    """Return the message for a command that could not be carried out; code is a gRPC status name."""
    number: int = grpc.StatusCode[code].value[0]
    return worker_pb2.Event(rejected=worker_pb2.Rejected(request_id=request_id, code=number, reason=reason))


def worker_info(
    worker_id: str, role: str, tokenizer_hash: str, engine: EngineInfo, time_model_json: str
) -> worker_pb2.WorkerInfo:
    """Return what a worker says of itself."""
    return worker_pb2.WorkerInfo(
        worker_id=worker_id,
        proto_version=PROTO_VERSION,
        model=engine.model,
        tokenizer_hash=tokenizer_hash,
        role=role,
        kv_blocks=engine.kv_blocks,
        block_size=engine.block_size,
        max_model_len=engine.max_model_len,
        max_batch_tokens=engine.max_batch_tokens,
        max_batch_requests=engine.max_batch_requests,
        emulated=engine.emulated,
        time_model_json=time_model_json,
        hardware=engine.hardware,
        kv_address=engine.kv_address,
        max_spec_tokens=engine.max_spec_tokens,
        prefix_caching=engine.prefix_caching,
        kv_layout=engine.kv_layout,
    )
