"""Which requests an emulated engine takes."""

from __future__ import annotations

from engine.emulated.config import EmulatedConfig
from engine.protocol import EngineRequest, RequestRejected


def output_bound(request: EngineRequest, config: EmulatedConfig) -> int:
    """Return the most output tokens of a request that can run; RequestRejected for one that can never run."""
    sampling, length = request.sampling, len(request.token_ids)
    if not 1 <= request.prompt_tokens <= length:
        raise RequestRejected("INVALID_ARGUMENT", "the prompt needs at least one token, within the tokens given")
    if min(request.token_ids) < 0 or max(request.token_ids) >= config.vocab_size:
        raise RequestRejected("INVALID_ARGUMENT", f"token ids must lie in 0..{config.vocab_size - 1}")
    if length >= config.max_model_len:
        raise RequestRejected(
            "INVALID_ARGUMENT",
            f"{length} tokens leave no room for output in the window of {config.max_model_len}; shorten the prompt",
        )
    if sampling.json_schema or sampling.json_object:
        raise RequestRejected("UNIMPLEMENTED", "the emulated engine has no structured output")
    if request.kv_transfer is not None and config.kv_exchange is None:
        raise RequestRejected("UNIMPLEMENTED", "this engine was started without KV exchange")
    if request.tpot_s <= 0 or (request.thinking_tpot_s is not None and request.thinking_tpot_s <= 0):
        raise RequestRejected("INVALID_ARGUMENT", "the time per output token must be positive")
    capacity = config.kv_blocks * config.block_size
    if length >= capacity:
        raise RequestRejected(
            "INVALID_ARGUMENT", f"{length} tokens and their output do not fit the KV cache of {capacity} tokens"
        )
    room = min(config.max_model_len, capacity) - request.prompt_tokens
    wanted = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
    if wanted <= length - request.prompt_tokens:
        raise RequestRejected("INVALID_ARGUMENT", "max_tokens leaves nothing to produce")
    return wanted
