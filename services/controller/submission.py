"""What a worker is sent for a request: the whole of it, or one half of a hand-over between two workers."""

from __future__ import annotations

from dataclasses import dataclass

from protos.slos.v1 import common_pb2, worker_pb2
from scheduling.types import Admission
from services.common import clock
from services.controller.link import Stamp
from services.controller.request import LiveRequest

LEG = "~p"
"""Ends the name of the half that only computes the prompt."""
LEASE_MS = 5000


@dataclass(frozen=True, slots=True)
class Handover:
    """KV of one submission on its way from one worker to another; addresses are those of their KV endpoints."""

    transfer_id: str
    generation: int
    prefill_worker: str
    prefill_address: str
    decode_worker: str
    decode_address: str

    def end(self, producer: bool) -> worker_pb2.KvTransfer:
        """Describe the transfer to one of its ends."""
        return worker_pb2.KvTransfer(
            transfer_id=self.transfer_id,
            generation=self.generation,
            producer=producer,
            peer=self.decode_worker if producer else self.prefill_worker,
            peer_address=self.decode_address if producer else self.prefill_address,
            lease_ms=LEASE_MS,
        )


def leg_id(request: LiveRequest) -> str:
    """Name, on the prefill worker, of the half that computes the prompt."""
    return request.wire_id + LEG


def submission(request: LiveRequest, handover: Handover | None = None) -> worker_pb2.Submit:
    """Return the request for the worker that produces its tokens; handover: its KV comes from another one."""
    submit = worker_pb2.Submit(
        request_id=request.wire_id,
        token_ids=request.tokens(),
        prompt_tokens=request.prompt_tokens,
        sampling=request.sampling,
        admission=_admission(request),
        tpot_us=round(request.slo.tpot_s * clock.MICROSECONDS),
        thinking_tpot_us=round((request.slo.thinking_tpot_s or 0.0) * clock.MICROSECONDS),
        expected_output_tokens=request.expected_output_tokens,
        value=request.value,
        slo_class=request.slo_class,
        session_id=request.call.session_id,
        thinking_done=request.thinking_done,
        text_chars=request.text_chars,
        hopeful=request.hopeful,
    )
    if request.slo.thinking_tpot_s is not None and request.thinking_end_token_id is not None:
        submit.thinking_end_token_id = request.thinking_end_token_id
    if handover is not None:
        submit.kv_transfer.CopyFrom(handover.end(producer=False))
    return submit


def prefill_submission(request: LiveRequest, handover: Handover) -> worker_pb2.Submit:
    """Return the half that computes the prompt, and the output so far, and hands the KV over; its token is not used."""
    tokens = request.tokens()
    return worker_pb2.Submit(
        request_id=leg_id(request),
        token_ids=tokens,
        prompt_tokens=len(tokens),
        sampling=common_pb2.Sampling(temperature=0.0, max_tokens=1, ignore_eos=True),
        admission=_admission(request),
        tpot_us=round(request.slo.tpot_s * clock.MICROSECONDS),
        expected_output_tokens=1,
        value=request.value,
        slo_class=request.slo_class,
        session_id=request.call.session_id,
        kv_transfer=handover.end(producer=True),
        hopeful=request.hopeful,
    )


def stamping(first_due_s: float, next_due_s: float | None, arrival_s: float) -> Stamp:
    """Fill a Submit's times in at the moment of sending."""

    def stamp(command: worker_pb2.Command, now_s: float) -> None:
        submit = command.submit
        submit.ttft_remaining_us = clock.remaining_us(first_due_s, now_s)
        submit.age_us = clock.remaining_us(now_s, arrival_s)
        if next_due_s is not None:
            submit.next_token_remaining_us = clock.remaining_us(next_due_s, now_s)

    return stamp


def _admission(request: LiveRequest) -> common_pb2.Admission:
    standard = request.admission is Admission.STANDARD
    return common_pb2.ADMISSION_STANDARD if standard else common_pb2.ADMISSION_BEST_EFFORT
