from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.slos.v1 import common_pb2
from services.controller.contract import ApiError
from services.controller.sampling import MAX_SEED, checked_sampling, derived_seed

WINDOW = 100


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": float("nan")}),
        ("top_p", {"top_p": 0.0}),
        ("top_p", {"top_p": 1.5}),
        ("top_k", {"top_k": -2}),
        ("min_p", {"min_p": 1.01}),
        ("presence_penalty", {"presence_penalty": 2.5}),
        ("frequency_penalty", {"frequency_penalty": float("inf")}),
        ("repetition_penalty", {"repetition_penalty": 0.0}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 91}),
        ("min_tokens", {"max_tokens": 5, "min_tokens": 6}),
        ("logprobs", {"logprobs": -1}),
        ("logprobs", {"logprobs": 21}),
        ("stop", {"stop": [""]}),
        ("stop", {"stop": ["x"] * 17}),
        ("logit_bias", {"logit_bias": {3: 101.0}}),
        ("json_object", {"json_object": True, "json_schema": "{}"}),
    ],
)
def test_a_bad_parameter_is_named(param: str, fields: dict[str, object]) -> None:
    with pytest.raises(ApiError) as caught:
        checked_sampling(common_pb2.Sampling(**fields), prompt_tokens=10, window=WINDOW)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.param == param
    assert param in caught.value.message


def test_a_prompt_that_fills_the_window_is_refused_with_the_lengths() -> None:
    with pytest.raises(ApiError, match=r"100 tokens.*window is 100.*at most 99"):
        checked_sampling(common_pb2.Sampling(), prompt_tokens=100, window=WINDOW)


@given(prompt=st.integers(1, 99), asked=st.one_of(st.none(), st.integers(1, 99)))
def test_output_never_passes_the_window(prompt: int, asked: int | None) -> None:
    sampling = common_pb2.Sampling()
    if asked is not None:
        sampling.max_tokens = asked
    try:
        checked = checked_sampling(sampling, prompt, WINDOW)
    except ApiError:
        assert asked is not None
        assert asked > WINDOW - prompt
        return
    assert 1 <= checked.max_tokens <= WINDOW - prompt
    assert checked.max_tokens == (asked if asked is not None else WINDOW - prompt)
    assert not sampling.HasField("max_tokens") or sampling.max_tokens == asked


def test_all_tokens_can_be_asked_for_in_both_ways() -> None:
    assert checked_sampling(common_pb2.Sampling(top_k=-1), 1, WINDOW).top_k == 0


@given(seed=st.integers(-(2**63), MAX_SEED), generated=st.integers(1, 100_000))
def test_a_derived_seed_is_valid_and_always_the_same(seed: int, generated: int) -> None:
    derived = derived_seed(seed, generated)
    assert 0 <= derived <= MAX_SEED
    assert derived == derived_seed(seed, generated)
    assert derived != derived_seed(seed, generated + 1)
    common_pb2.Sampling(seed=derived)
