"""Hardware profiles: every number has a source, and the published ones are what was published."""

from __future__ import annotations

import json

import pytest

from scheduling.time_model import BatchShape
from simulation import profiles
from simulation.profiles.models import MODELS
from simulation.profiles.profile import KINDS, ProfileError


@pytest.mark.parametrize("name", profiles.names())
def test_a_profile_says_where_its_numbers_come_from(name: str) -> None:
    profile = profiles.load(name)
    assert profile.name == name
    assert {"time_model", "kv_tokens", "link"} <= set(profile.provenance)
    for provenance in profile.provenance.values():
        assert provenance.kind in KINDS
        assert provenance.source
        assert provenance.uncertainty
    assert 0.005 < profile.zero_load_prefill_s(1000) < 0.5
    assert profile.limits.total_blocks * profile.limits.block_size > 10_000


def test_the_profiles_that_were_promised_are_there() -> None:
    promised = {
        "a100-opt-7b", "a100-opt-13b", "a100-opt-30b", "a100-toolllama-7b", "a100-r1-qwen-1.5b", "a100-opt-13b-kv",
        "a100-llama-2-7b", "h100-llama-2-7b", "a100-llama-3-8b", "h200-llama-2-7b",
    }  # fmt: skip
    assert promised <= set(profiles.names())


def test_the_papers_line_of_opt_7b() -> None:
    model = profiles.load("a100-opt-7b").time_model
    for tokens in (1, 64, 366, 1093, 4096):
        expected = max(6.878e-5 * tokens + 0.0248, 7.523e-5 * tokens + 0.00303)
        assert model.duration_s(BatchShape(tokens)) == pytest.approx(expected)
    assert model.max_new_tokens(0.050) == pytest.approx(366, abs=1)
    assert model.max_new_tokens(0.100) == pytest.approx(1093, abs=1)


@pytest.mark.parametrize(("decodes", "context"), [(0, 0), (20, 700), (64, 900)])
@pytest.mark.parametrize(("chunk", "cached"), [(0, 0), (512, 0), (1024, 2048)])
def test_distserves_mixed_batch(decodes: int, context: int, chunk: int, cached: int) -> None:
    if decodes + chunk == 0:
        return
    kv = decodes * context
    # Coefficients as published, milliseconds; below a batch of 95 the first decode branch holds.
    expected = 23.48 + 0.1405 * chunk + 8.08e-6 * chunk * (2 * cached + chunk) + 5.93e-4 * kv + 0.0607 * decodes
    model = profiles.load("a100-opt-13b-kv").time_model
    shape = BatchShape(decodes + chunk, decodes + (chunk > 0), kv, chunk * (cached + chunk / 2))
    # A prefill counts as a request too: at most 0.08 ms.
    assert model.duration_s(shape) * 1e3 == pytest.approx(expected, rel=0.002, abs=0.2)


def test_memory_is_what_the_formula_gives() -> None:
    facts = MODELS["llama-3-8b"]
    assert facts.kv_bytes_per_token == 131072
    assert facts.kv_tokens("A100-80GB", 1) == int((0.9 * 80 * 2**30 - 16.1e9) // 131072)
    limits = profiles.load("a100-opt-13b-kv").limits
    assert limits.total_blocks * limits.block_size == 66144


def test_the_link_moves_kv_at_its_bandwidth() -> None:
    profile = profiles.load("a100-opt-13b-kv")
    assert profile.link.seconds(1000 * profile.kv_bytes_per_token) == pytest.approx(0.001 + 0.8192e9 / 25e9)


def test_a_profile_survives_its_json(tmp_path) -> None:
    profile = profiles.load("a100-opt-7b")
    path = tmp_path / "mine.json"
    path.write_text(profile.to_json())
    assert profiles.load(str(path)) == profile


def test_what_slosctl_profile_wrote_is_a_profile(tmp_path) -> None:
    path = tmp_path / "laptop.json"
    model = profiles.load("a100-opt-7b").time_model
    engine = {"kv_blocks": 364, "block_size": 128, "max_batch_tokens": 2048, "hardware": "a laptop"}
    path.write_text(json.dumps({"time_model": json.loads(model.to_json()), "engine": engine}))
    profile = profiles.load(str(path))
    assert profile.name == "laptop"
    assert profile.limits.total_blocks == 364
    assert profile.limits.block_size == 128
    assert profile.time_model.lines == model.lines
    path.write_text(model.to_json())
    assert profiles.load(str(path)).time_model.lines == model.lines


@pytest.mark.parametrize("text", ["{", "[]", '{"provenance": {}}', '{"lines": []}'])
def test_a_broken_profile_is_named(text: str, tmp_path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match=r"broken\.json is not a hardware profile"):
        profiles.load(str(path))
    with pytest.raises(ProfileError, match="unknown profile 'nothing'"):
        profiles.load("nothing")
