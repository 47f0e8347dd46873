"""Promises on virtual time: kept with an exact time model, kept to the target with noise and the learned margin."""

from __future__ import annotations

import numpy as np
import pytest

from scheduling import registry
from scheduling.margin import MarginEstimator
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits, Slo
from tests.scheduling.driver import Job, Run, drive

OPT_13B = TimeModel(((0.02348, 1.405e-4, -7.98e-5, 5.93e-7, 1.616e-8, 0.0),))
OPT_7B = TimeModel(((0.0248, 6.878e-5, 0.0, 0.0, 0.0, 1.25e-6), (0.00303, 7.523e-5, 0.0, 0.0, 0.0, 3.465e-3)))
SLOW_CPU = TimeModel(((0.045, 1.75e-3, 0.0, 1e-6, 1e-8, 0.0),))
LIMITS = EngineLimits(2048, 256, 16, 4134, 8192)


def jobs(seed: int, count: int, rate: float, model: TimeModel, scale: float = 1.0, tokens: float = 1.0) -> list[Job]:
    """Bursty mixed work: chat, coding and summaries with the paper's SLOs, stretched by `scale`."""
    rng = np.random.default_rng(seed)
    now, made = 0.0, []
    for k in range(count):
        now += float(rng.gamma(0.5, 2.0 / rate))
        kind = int(rng.integers(3))
        mean, spread, out = ((6.5, 1.0, 5.0), (5.0, 0.5, 4.0), (7.8, 0.35, 5.0))[kind]
        prompt = int(np.clip(rng.lognormal(mean, spread) * tokens, 4, 4000))
        output = int(np.clip(rng.lognormal(out, 0.7) * tokens, 2, 640))
        slowdown, tpot = ((5.0, 0.1), (5.0, 0.05), (3.0, 0.1))[kind]
        slo = Slo(slowdown * model.zero_load_prefill_s(prompt, LIMITS.max_batch_tokens), tpot * scale)
        made.append(Job(f"{k}", now, prompt, output, slo, value=float(rng.choice([1.0, 1.0, 3.0]))))
    return made


def promised(run: Run) -> int:
    return sum(job.promised for job in run.jobs)


@pytest.mark.parametrize(
    ("model", "rate", "blocks", "scale", "tokens"),
    [
        (OPT_13B, 1.5, 4134, 1.0, 1.0),
        (OPT_13B, 4.0, 4134, 1.0, 1.0),
        (OPT_13B, 2.5, 700, 1.0, 1.0),
        (OPT_7B, 4.0, 4134, 1.0, 1.0),
        (SLOW_CPU, 1.0, 360, 4.0, 0.15),
    ],
    ids=["13b", "13b-overload", "13b-little-memory", "7b", "slow-cpu"],
)
@pytest.mark.parametrize("policy", ["slos", "edf-exact"])
def test_exact_time_model_keeps_every_promise(
    policy: str, model: TimeModel, rate: float, blocks: int, scale: float, tokens: float
) -> None:
    limits = EngineLimits(LIMITS.max_batch_tokens, 256, 16, blocks, 8192)
    work = jobs(11, 500, rate, model, scale, tokens)
    run = drive(registry.get(policy), work, model, limits)
    assert promised(run) > 150
    assert run.precision() >= 0.999
    assert all(len(job.token_times_s) == job.output_tokens for job in run.jobs), "a request was not finished"


def test_hope_saves_requests_that_were_promised_nothing() -> None:
    """Served by their deadlines in what promises leave, more are in time, and every promise is still kept."""
    share = {}
    for name, hopeful in (("hope", True), ("none", False)):
        run = drive(registry.get("slos", hopeful=hopeful), jobs(5, 500, 2.5, OPT_13B), OPT_13B, LIMITS)
        assert run.precision() == 1.0
        share[name] = run.attainment()
    assert share["hope"] > share["none"] + 0.02


@pytest.mark.parametrize(("noise", "least", "most"), [(0.03, 1.05, 1.2), (0.12, 1.15, 1.45)])
def test_learned_margin_reaches_the_target_under_noise(noise: float, least: float, most: float) -> None:
    kept, made = 0.0, 0
    for seed in (1, 2):
        margin = MarginEstimator(precision_target=0.99)
        run = drive(registry.get("slos"), jobs(seed, 700, 2.0, OPT_13B), OPT_13B, LIMITS, noise=noise, margin=margin)
        assert least < margin.margin() < most
        kept += run.precision() * promised(run)
        made += promised(run)
    assert made > 700
    assert kept / made >= 0.99


def test_noise_without_margin_breaks_promises() -> None:
    """The two tests above would pass by themselves if noise did not matter."""
    run = drive(registry.get("slos"), jobs(1, 500, 2.0, OPT_13B), OPT_13B, LIMITS, noise=0.03)
    assert run.precision() < 0.95


def test_admission_beats_admitting_everything() -> None:
    limits = LIMITS
    ours = drive(registry.get("slos"), jobs(5, 500, 2.5, OPT_13B), OPT_13B, limits)
    stock = drive(registry.get("vllm-v1"), jobs(5, 500, 2.5, OPT_13B), OPT_13B, limits)
    assert ours.attainment() > stock.attainment() + 0.2


@pytest.mark.parametrize("policy", ["dp", "edf-pb"])
def test_the_papers_planner_keeps_most_promises(policy: str) -> None:
    """Tier counts do not see the phase of each request, so some promises break; most must hold."""
    run = drive(registry.get(policy), jobs(5, 500, 2.0, OPT_13B), OPT_13B, LIMITS)
    assert promised(run) > 200
    assert run.precision() > 0.95


def test_speculation_pays_only_where_drafts_are_accepted() -> None:
    limits = EngineLimits(2048, 256, 16, 4134, 8192, max_spec_tokens=5)
    runs = {
        rate: drive(registry.get("slos"), jobs(3, 250, 2.0, OPT_7B), OPT_7B, limits, acceptance=rate)
        for rate in (0.0, 0.8)
    }
    assert runs[0.0].spec_tokens == 0
    assert runs[0.8].spec_tokens > 0
    assert runs[0.8].accepted / runs[0.8].spec_tokens > 0.4
    assert runs[0.8].precision() >= 0.999
    assert runs[0.8].attainment() >= runs[0.0].attainment() - 0.02


def test_wrong_lengths_are_repaired_by_preempting_best_effort_first() -> None:
    limits = EngineLimits(2048, 256, 16, 500, 8192)
    work = jobs(9, 300, 2.0, OPT_13B)
    for job in work:
        job.expected_output_tokens = max(1, job.output_tokens // 2)
    run = drive(registry.get("slos"), work, OPT_13B, limits)
    assert run.precision() > 0.9
    evicted = [job for job in run.jobs if job.preemptions]
    assert sum(not job.promised for job in evicted) >= sum(job.promised for job in evicted)


def test_best_effort_work_never_starves() -> None:
    """Every best-effort request finishes, and at twice the capacity some old ones begin before the load ends.

    Beside promised work they have turns of 0.1 % of the time and lulls, while they are half of all that arrives.
    """
    work = jobs(21, 600, 4.0, OPT_13B)
    run = drive(registry.get("slos"), work, OPT_13B, LIMITS)
    last_arrival = work[-1].arrival_s
    waited = [job for job in run.jobs if not job.promised]
    assert len(waited) > 100
    assert all(job.token_times_s for job in waited)
    early = [job for job in waited if job.arrival_s < last_arrival / 4]
    assert sum(job.token_times_s[0] < last_arrival for job in early) > len(early) / 20
