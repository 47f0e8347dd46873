"""Checks the sampling parameters of a request, whichever front door it came through."""

from __future__ import annotations

import math

from protos.slos.v1 import common_pb2
from services.controller.contract import ApiError
from services.controller.tokenizer import ModelTokenizer

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1

# field -> (smallest, is the smallest allowed, largest)
_RANGES: dict[str, tuple[float, bool, float]] = {
    "temperature": (0.0, True, 100.0),
    "top_p": (0.0, False, 1.0),
    "min_p": (0.0, True, 1.0),
    "presence_penalty": (-2.0, True, 2.0),
    "frequency_penalty": (-2.0, True, 2.0),
    "repetition_penalty": (0.0, False, 100.0),
}


def check_token_ids(sampling: common_pb2.Sampling, model: ModelTokenizer) -> None:
    """ApiError names the parameter that speaks of a token which the model does not have."""
    for name in ("stop_token_ids", "logit_bias"):
        try:
            model.check_ids(getattr(sampling, name))
        except ValueError as error:
            _refuse(name, str(error))


def checked_sampling(sampling: common_pb2.Sampling, prompt_tokens: int, window: int) -> common_pb2.Sampling:
    """Return a copy with max_tokens filled in; ApiError names the parameter that is wrong.

    prompt_tokens: length of the prompt. window: prompt plus output, tokens.
    """
    for name, (smallest, inclusive, largest) in _RANGES.items():
        if sampling.HasField(name):
            value: float = getattr(sampling, name)
            if not math.isfinite(value) or value > largest or value < smallest or (value == smallest and not inclusive):
                bound = "at least" if inclusive else "above"
                _refuse(name, f"must be {bound} {smallest:g} and at most {largest:g}, not {value:g}")
    if sampling.HasField("top_k") and sampling.top_k < -1:
        _refuse("top_k", f"must be at least 1, or 0 or -1 for all tokens, not {sampling.top_k}")
    if sampling.HasField("logprobs") and not 0 <= sampling.logprobs <= MAX_LOGPROBS:
        _refuse("logprobs", f"must be between 0 and {MAX_LOGPROBS}, not {sampling.logprobs}")
    if len(sampling.stop) > MAX_STOPS:
        _refuse("stop", f"at most {MAX_STOPS} stop strings, not {len(sampling.stop)}")
    if any(not text or len(text) > MAX_STOP_CHARS for text in sampling.stop):
        _refuse("stop", f"every stop string must have 1 to {MAX_STOP_CHARS} characters")
    for bias in sampling.logit_bias.values():
        if not -100 <= bias <= 100:
            _refuse("logit_bias", f"must be between -100 and 100, not {bias:g}")
    if sampling.json_schema and sampling.json_object:
        _refuse("json_object", "excludes json_schema; give one of them")
    checked = common_pb2.Sampling()
    checked.CopyFrom(sampling)
    _fill_lengths(checked, prompt_tokens, window)
    if sampling.top_k == -1:
        checked.top_k = 0
    return checked


def _fill_lengths(sampling: common_pb2.Sampling, prompt_tokens: int, window: int) -> None:
    room = window - prompt_tokens
    if room < 1:
        raise ApiError(
            "INVALID_ARGUMENT",
            f"the prompt has {prompt_tokens} tokens, but the model's window is {window} for prompt and output "
            f"together; send at most {window - 1}",
            param="prompt",
        )
    if sampling.HasField("max_tokens"):
        if sampling.max_tokens < 1:
            _refuse("max_tokens", "must be at least 1")
        if sampling.max_tokens > room:
            _refuse(
                "max_tokens",
                f"{sampling.max_tokens} is too large: the prompt has {prompt_tokens} tokens and the model's window is "
                f"{window}, which leaves {room}",
            )
    else:
        sampling.max_tokens = room
    if sampling.min_tokens > sampling.max_tokens:
        _refuse("min_tokens", f"{sampling.min_tokens} is more than max_tokens ({sampling.max_tokens})")


def derived_seed(seed: int, generated: int) -> int:
    """Seed with which a sampled request goes on after a failover: other numbers than before, the same every time."""
    return (seed * 6364136223846793005 + generated * 1442695040888963407 + 1) & MAX_SEED


def _refuse(param: str, text: str) -> None:
    raise ApiError("INVALID_ARGUMENT", f"{param}: {text}", param=param)
