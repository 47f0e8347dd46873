"""Makes live requests for tests of single parts."""

from __future__ import annotations

import time

from protos.slos.v1 import common_pb2
from scheduling.types import OnMiss, Slo
from services.controller.contract import GenerationCall
from services.controller.request import LiveRequest, Outbox


def make_request(
    request_id: str = "r",
    *,
    arrival_s: float | None = None,
    tenant: str = "default",
    model: str = "tiny",
    prompt: tuple[int, ...] = (1, 2, 3),
    max_tokens: int = 16,
) -> LiveRequest:
    """A chat request as intake would make it."""
    call = GenerationCall(
        model=model,
        token_ids=prompt,
        sampling=common_pb2.Sampling(),
        slo=common_pb2.SloSpec(),
        received_s=time.monotonic() if arrival_s is None else arrival_s,
        request_id=request_id,
        tenant=tenant,
    )
    return LiveRequest(
        request_id=request_id,
        call=call,
        slo_class="chatbot",
        tenant=tenant,
        slo=Slo(1.0, 0.1),
        value=1.0,
        on_miss=OnMiss.BEST_EFFORT,
        sampling=common_pb2.Sampling(max_tokens=max_tokens),
        expected_output_tokens=max_tokens,
        max_output_tokens=max_tokens,
        outbox=Outbox(request_id),
    )
