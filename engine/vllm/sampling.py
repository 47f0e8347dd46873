"""vLLM's sampling parameters of a request, and what a request may not ask for."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from engine.protocol import EngineRequest, KvTransferSpec, RequestRejected
from engine.vllm.config import VllmConfig
from engine.vllm.messages import REQUEST_ARG, RequestFacts

PRIOR_ARG = "slos_prior"
"""Key in extra_args: {"prompt_tokens": n, "text_chars": c}, for requests that were resumed."""

_NO_SPECULATION = "cannot be used on an engine with speculative decoding; send it to a replica without"


def sampling_params(config: VllmConfig, request: EngineRequest, kv_handle: str = "") -> Any:
    """Make vLLM's sampling parameters of a request; what counts output counts from the original prompt.

    kv_handle: what the prefill engine has said of the request's KV (Engine.hand_over).
    """
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    spec = request.sampling
    prior = len(request.token_ids) - request.prompt_tokens
    _check(config, request)
    extra: dict[str, Any] = {REQUEST_ARG: msgspec.to_builtins(_facts(request, prior))}
    penalties = {
        "presence_penalty": spec.presence_penalty,
        "frequency_penalty": spec.frequency_penalty,
        "repetition_penalty": spec.repetition_penalty,
    }
    if prior:
        extra[PRIOR_ARG] = {"prompt_tokens": request.prompt_tokens, "text_chars": request.text_chars}
        if spec.presence_penalty or spec.frequency_penalty:
            from engine.vllm.resume import PENALTIES_ARG

            extra[PENALTIES_ARG] = {
                "prior": list(request.token_ids[request.prompt_tokens :]),
                "presence": spec.presence_penalty,
                "frequency": spec.frequency_penalty,
                "repetition": spec.repetition_penalty,
            }
            penalties = {}
    structured = None
    if spec.json_schema:
        structured = StructuredOutputsParams(json=spec.json_schema)
    elif spec.json_object:
        structured = StructuredOutputsParams(json_object=True)
    if request.kv_transfer is not None:
        extra["kv_transfer_params"] = _kv_transfer_params(config, request.kv_transfer, kv_handle)
    try:
        return SamplingParams(
            temperature=spec.temperature,
            top_p=spec.top_p,
            top_k=spec.top_k,
            min_p=spec.min_p,
            seed=_seed(spec.seed, prior),
            stop=list(spec.stop) or None,
            stop_token_ids=list(spec.stop_token_ids) or None,
            max_tokens=None if spec.max_tokens is None else spec.max_tokens - prior,
            min_tokens=max(spec.min_tokens - prior, 0),
            ignore_eos=spec.ignore_eos,
            logprobs=spec.logprobs,
            logit_bias=dict(spec.logit_bias) or None,
            structured_outputs=structured,
            output_kind=RequestOutputKind.DELTA,
            extra_args=extra,
            **penalties,
        )
    except (VLLMClientError, ValueError, TypeError) as error:
        raise RequestRejected("INVALID_ARGUMENT", str(error)) from error


def _kv_transfer_params(config: VllmConfig, transfer: KvTransferSpec, kv_handle: str) -> dict[str, Any]:
    if config.kv_connector is not None and config.kv_connector.needs_handle:
        from engine.vllm.kv.nixl_settings import transfer_params

        return transfer_params(transfer, kv_handle)
    return {name: getattr(transfer, name) for name in transfer.__dataclass_fields__}


def _check(config: VllmConfig, request: EngineRequest) -> None:
    spec, length = request.sampling, len(request.token_ids)
    if not 0 < request.prompt_tokens <= length:
        raise RequestRejected(
            "INVALID_ARGUMENT", f"prompt_tokens is {request.prompt_tokens}, but {length} token ids were given"
        )
    if length >= config.max_model_len:
        raise RequestRejected(
            "INVALID_ARGUMENT",
            f"{length} tokens of prompt and prior output leave no room for output: the model's limit here is "
            f"{config.max_model_len} tokens; shorten the prompt",
        )
    if spec.max_tokens is not None and spec.max_tokens <= length - request.prompt_tokens:
        raise RequestRejected(
            "INVALID_ARGUMENT",
            f"max_tokens is {spec.max_tokens}, and {length - request.prompt_tokens} tokens are there already",
        )
    for name, value in (("arrival_s", request.arrival_s), ("tpot_s", request.tpot_s)):
        if not math.isfinite(value):
            raise RequestRejected("INVALID_ARGUMENT", f"{name} must be a finite number, not {value}")
    if config.speculation is not None:
        if spec.min_p:
            raise RequestRejected("INVALID_ARGUMENT", f"min_p {_NO_SPECULATION}")
        if spec.logit_bias:
            raise RequestRejected("INVALID_ARGUMENT", f"logit_bias {_NO_SPECULATION}")
        if length > request.prompt_tokens and (spec.presence_penalty or spec.frequency_penalty):
            raise RequestRejected(
                "FAILED_PRECONDITION", f"presence_penalty and frequency_penalty of a resumed request {_NO_SPECULATION}"
            )


def _seed(seed: int | None, prior: int) -> int | None:
    """Seed of a resumed request: another one, or its first tokens would repeat the draws of the original's."""
    return seed if seed is None or not prior else (seed * 1_000_003 + prior) % (1 << 63)


def _facts(request: EngineRequest, prior: int) -> RequestFacts:
    return RequestFacts(
        request_id=request.request_id,
        standard=request.standard,
        arrival_s=request.arrival_s,
        first_token_due_s=request.first_token_due_s,
        tpot_s=request.tpot_s,
        prior_tokens=prior,
        next_token_due_s=request.next_token_due_s,
        thinking_tpot_s=request.thinking_tpot_s,
        thinking_end_token_id=request.thinking_end_token_id,
        thinking_done=request.thinking_done,
        expected_output_tokens=request.expected_output_tokens,
        value=request.value,
        slo_class=request.slo_class,
        hopeful=request.hopeful,
    )
