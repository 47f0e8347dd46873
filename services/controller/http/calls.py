"""From a checked request to the calls that the core serves: one per prompt and sample."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from protos.slos.v1 import common_pb2
from services.controller.contract import ApiError, GenerationCall
from services.controller.http.schema import Generation
from services.controller.sampling import check_token_ids
from services.controller.tokenizer import ModelTokenizer

MAX_CALLS = 128
_SEED_RANGE = 1 << 63


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the HTTP request says outside its body's generation fields; received_s is on the monotonic clock."""

    request_id: str
    received_s: float
    slo: common_pb2.SloSpec
    session_id: str
    tenant: str


def sampling_of(
    request: Generation, tokenizer: ModelTokenizer, max_tokens: int | None, logprobs: int | None
) -> common_pb2.Sampling:
    """Sampling parameters on the wire; ApiError when two contradict each other or the model lacks a token."""
    if request.min_tokens is not None and max_tokens is not None and request.min_tokens > max_tokens:
        text = f"min_tokens: must be at most max_tokens (got {request.min_tokens}, max_tokens is {max_tokens})"
        raise ApiError("INVALID_ARGUMENT", text, "min_tokens")
    sampling = common_pb2.Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=None if request.top_k is None else max(0, request.top_k),
        min_p=request.min_p,
        seed=request.seed,
        stop=request.stop,
        stop_token_ids=request.stop_token_ids,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
        logit_bias=request.logit_bias,
    )
    check_token_ids(sampling, tokenizer)
    form = request.response_format
    if form is not None and form.type == "json_object":
        sampling.json_object = True
    elif form is not None and form.json_schema is not None:
        sampling.json_schema = json.dumps(form.json_schema.schema_, ensure_ascii=False)
    return sampling


def fan_out(
    request: Generation,
    arrival: Arrival,
    prompts: Sequence[tuple[list[int], bool]],
    sampling: common_pb2.Sampling,
    has_tools: bool,
) -> list[GenerationCall]:
    """All calls of a request, choices of one prompt together; prompts: token ids and whether the model then thinks.

    With several calls each gets an id of its own, ID-0, ID-1 ..., and each sample of a prompt its own seed.
    """
    samples = request.n or 1
    if len(prompts) * samples > MAX_CALLS:
        raise ApiError("INVALID_ARGUMENT", f"n: at most {MAX_CALLS} choices in one request (prompts times n)", "n")
    calls: list[GenerationCall] = []
    for token_ids, thinks in prompts:
        for sample in range(samples):
            own = sampling
            if sample and sampling.HasField("seed"):
                own = common_pb2.Sampling()
                own.CopyFrom(sampling)
                own.seed = (sampling.seed + sample + _SEED_RANGE) % (2 * _SEED_RANGE) - _SEED_RANGE
            several = len(prompts) * samples > 1
            calls.append(
                GenerationCall(
                    model=request.model,
                    token_ids=tuple(token_ids),
                    sampling=own,
                    slo=arrival.slo,
                    received_s=arrival.received_s,
                    request_id=f"{arrival.request_id}-{len(calls)}" if several else arrival.request_id,
                    session_id=arrival.session_id,
                    tenant=arrival.tenant,
                    has_tools=has_tools,
                    thinks=thinks,
                )
            )
    return calls
