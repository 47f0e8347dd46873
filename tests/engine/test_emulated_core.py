from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.emulated.config import EmulatedConfig
from engine.emulated.core import EmulatedCore
from engine.protocol import EngineRequest, KvTransferSpec, RequestRejected, RequestUpdate, SamplingSpec
from tests.engine.policies import Anything, DecodeFirst

CONFIG = EmulatedConfig(kv_blocks=24, block_size=4, max_model_len=80, max_batch_tokens=24, output_mean=12.0)


def make_request(request_id: str, tokens: list[int], **changes: object) -> EngineRequest:
    request = EngineRequest(
        request_id=request_id,
        token_ids=tuple(tokens),
        prompt_tokens=len(tokens),
        sampling=SamplingSpec(temperature=0.0),
        standard=True,
        arrival_s=0.0,
        first_token_due_s=1.0,
        tpot_s=0.05,
    )
    return replace(request, **changes)


def run(core: EmulatedCore, steps: int = 5000) -> dict[str, list[RequestUpdate]]:
    """Step until nothing is left; returns what was said to each request."""
    said: dict[str, list[RequestUpdate]] = {}
    now_s = 0.0
    for _ in range(steps):
        batch = core.begin(now_s)
        if batch is None:
            break
        now_s += batch.duration_s
        for update in core.drop_cancelled() + core.finish(batch, now_s):
            said.setdefault(update.request_id, []).append(update)
    assert not core.live, f"{len(core.live)} requests did not finish in {steps} steps"
    return said


def tokens_of(updates: list[RequestUpdate]) -> list[int]:
    return [token for update in updates for token in update.token_ids]


def alone(request: EngineRequest, config: EmulatedConfig = CONFIG) -> list[RequestUpdate]:
    core = EmulatedCore(replace(config, kv_blocks=64), DecodeFirst())
    core.submit(request)
    return run(core)[request.request_id]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), caching=st.booleans(), spec=st.integers(1, 4), count=st.integers(1, 12))
def test_any_plan_leads_every_request_to_the_same_tokens_and_leaks_no_block(
    seed: int, caching: bool, spec: int, count: int
) -> None:
    draw = random.Random(seed)
    config = replace(CONFIG, prefix_caching=caching, max_spec_tokens=spec)
    core = EmulatedCore(config, Anything(seed))
    shared = [draw.randint(8, 90) for _ in range(12)]
    requests = []
    for number in range(count):
        prompt = shared[: draw.randint(0, 12)] + [draw.randint(8, 90) for _ in range(draw.randint(1, 30))]
        sampling = SamplingSpec(temperature=draw.choice([0.0, 1.0]), max_tokens=draw.choice([None, 1, 7, 30]))
        requests.append(make_request(f"r{number}", prompt, sampling=sampling, standard=draw.random() < 0.5))
        core.submit(requests[-1])
    said = run(core)
    for request in requests:
        updates = said[request.request_id]
        assert tokens_of(updates) == tokens_of(alone(request, replace(config, max_spec_tokens=1)))
        assert [update.finish_reason != "" for update in updates] == [False] * (len(updates) - 1) + [True]
        assert updates[-1].kv_blocks == 0
    assert core.pool.free == config.kv_blocks
    assert core.pool.held == 0
    assert len(core.table) == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 40), temperature=st.sampled_from([0.0, 1.0]))
def test_another_engine_goes_on_where_the_first_one_stopped(seed: int, cut: int, temperature: float) -> None:
    draw = random.Random(seed)
    prompt = [draw.randint(8, 90) for _ in range(draw.randint(1, 20))]
    sampling = SamplingSpec(
        temperature=temperature, max_tokens=40, min_tokens=draw.choice([0, 20]), stop=("ba", "nor z")
    )
    request = make_request("r", prompt, sampling=sampling)
    whole = alone(request)
    tokens = tokens_of(whole)
    cut = min(cut, len(tokens) - 1)
    first = [update for update in whole if update.token_ids][:cut]
    shown = sum(len(update.text) for update in first)
    rest = alone(replace(request, token_ids=tuple(prompt + tokens[:cut]), text_chars=shown))
    assert tokens_of(rest) == tokens[cut:]
    assert "".join(u.text for u in first) + "".join(u.text for u in rest) == "".join(u.text for u in whole)
    assert rest[-1].finish_reason == whole[-1].finish_reason


def test_stop_string_is_not_shown_and_ends_the_output() -> None:
    request = make_request("r", [9, 10, 11], sampling=SamplingSpec(temperature=0.0, ignore_eos=True, max_tokens=40))
    text = "".join(update.text for update in alone(request))
    stop = text[20:26]
    stopped = alone(replace(request, sampling=replace(request.sampling, stop=(stop,))))
    assert "".join(update.text for update in stopped) == text[: text.index(stop)]
    assert stopped[-1].finish_reason == "stop"


def test_length_limits() -> None:
    request = make_request("r", [9] * 10, sampling=SamplingSpec(temperature=0.0, ignore_eos=True, max_tokens=33))
    assert len(tokens_of(alone(request))) == 33
    window = alone(replace(request, sampling=replace(request.sampling, max_tokens=None)))
    assert len(tokens_of(window)) == CONFIG.max_model_len - 10
    assert window[-1].finish_reason == "length"
    tiny = EmulatedCore(replace(CONFIG, kv_blocks=5), DecodeFirst())
    tiny.submit(replace(request, sampling=replace(request.sampling, max_tokens=None)))
    assert len(tokens_of(run(tiny)["r"])) == 5 * 4 - 10


def test_prefix_cache_serves_a_second_prompt_without_its_last_token() -> None:
    core = EmulatedCore(CONFIG, DecodeFirst())
    prompt = list(range(8, 24))
    core.submit(make_request("a", prompt))
    assert run(core)["a"][-1].cached_tokens == 0
    core.submit(make_request("b", prompt))
    assert run(core)["b"][-1].cached_tokens == 12


def test_speculation_gives_more_tokens_per_step_and_reports_drafts() -> None:
    config = replace(CONFIG, max_spec_tokens=4, accept_rate=0.8)
    sampling = SamplingSpec(temperature=0.0, ignore_eos=True, max_tokens=60)
    request = make_request("r", [9, 10, 11], sampling=sampling)
    plain, drafted = alone(request), alone(request, config)
    assert tokens_of(plain) == tokens_of(drafted)
    assert len(drafted) < 0.7 * len(plain)
    accepted, all_of = (sum(getattr(u, name) for u in drafted) for name in ("accepted_draft_tokens", "draft_tokens"))
    assert 0 < accepted < all_of
    assert accepted == 60 - len([u for u in drafted if u.token_ids])
    assert {update.accept_rate for update in plain} == {0.0}
    assert 0.5 < drafted[-2].accept_rate < 0.95


def test_thinking_ends_with_its_token_and_loosens_the_due_line() -> None:
    core = EmulatedCore(replace(CONFIG, thinking_mean=5.0), DecodeFirst())
    request = make_request("r", [9, 10], thinking_tpot_s=0.02, thinking_end_token_id=5)
    core.submit(request)
    slot = core.table.slot("r")
    assert core.table.tpot_s[slot] == 0.02
    seen: list[int] = []
    while "r" in core.live:
        batch = core.begin(0.0)
        assert batch is not None
        seen += [token for update in core.finish(batch, 0.5) for token in update.token_ids]
        if "r" in core.live:
            assert core.table.tpot_s[slot] == (0.05 if 5 in seen else 0.02)
            expected = 1.0 + sum(0.05 if 5 in seen[:k] else 0.02 for k in range(1, len(seen) + 1))
            assert core.table.next_deadline_s[slot] == pytest.approx(expected)
    assert seen.count(5) == 1


def test_logprobs_lead_with_the_chosen_token() -> None:
    request = make_request("r", [9], sampling=SamplingSpec(temperature=0.0, logprobs=3, max_tokens=5, ignore_eos=True))
    updates = alone(request)
    positions = [position for update in updates for position in update.logprobs]
    assert [position[0].token_id for position in positions] == tokens_of(updates)
    assert all(len(position) == 4 and all(t.logprob < 0 for t in position) for position in positions)


def test_standard_request_takes_the_memory_of_a_best_effort_one() -> None:
    core = EmulatedCore(replace(CONFIG, kv_blocks=10), DecodeFirst())
    forever = SamplingSpec(temperature=0.0, ignore_eos=True, max_tokens=20)
    core.submit(make_request("loose", [9] * 20, standard=False, sampling=forever))
    assert core.begin(0.0) is not None
    core.submit(make_request("promised", [10] * 19, sampling=forever))
    said = run(core)
    assert said["loose"][-1].preemptions >= 1
    assert said["promised"][-1].preemptions == 0
    assert len(tokens_of(said["loose"])) == 20


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"token_ids": (), "prompt_tokens": 0}, "INVALID_ARGUMENT", "at least one token"),
        ({"prompt_tokens": 4}, "INVALID_ARGUMENT", "within the tokens"),
        ({"token_ids": (9, -1, 9)}, "INVALID_ARGUMENT", "0..31999"),
        ({"token_ids": (9, 32_000, 9)}, "INVALID_ARGUMENT", "0..31999"),
        ({"token_ids": (9,) * 80, "prompt_tokens": 80}, "INVALID_ARGUMENT", "window of 80"),
        ({"tpot_s": 0.0}, "INVALID_ARGUMENT", "positive"),
        ({"prompt_tokens": 1, "sampling": SamplingSpec(max_tokens=2)}, "INVALID_ARGUMENT", "nothing to produce"),
        ({"sampling": SamplingSpec(json_object=True)}, "UNIMPLEMENTED", "structured"),
        ({"kv_transfer": KvTransferSpec("t", 1, True, "p", "h:1", 1.0)}, "UNIMPLEMENTED", "KV exchange"),
    ],
)
def test_requests_that_can_never_run_are_rejected(changes: dict[str, object], code: str, words: str) -> None:
    core = EmulatedCore(CONFIG, DecodeFirst())
    with pytest.raises(RequestRejected, match=words) as caught:
        core.submit(make_request("r", [9, 9, 9], **changes))
    assert caught.value.code == code
    assert not core.live
    assert len(core.table) == 0


def test_duplicates_and_full_queues_are_rejected() -> None:
    core = EmulatedCore(replace(CONFIG, queue_limit=1), DecodeFirst())
    core.submit(make_request("r", [9]))
    with pytest.raises(RequestRejected) as duplicate:
        core.submit(make_request("r", [9]))
    with pytest.raises(RequestRejected) as full:
        core.submit(make_request("s", [9]))
    assert (duplicate.value.code, full.value.code) == ("ALREADY_EXISTS", "RESOURCE_EXHAUSTED")
