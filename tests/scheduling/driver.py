"""One replica on virtual time: a small driver that asks a policy for admission and batches and obeys it exactly."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scheduling.margin import MarginEstimator
from scheduling.policy import Policy
from scheduling.request_table import RequestTable
from scheduling.scoring import Score, score
from scheduling.time_model import BatchShape, TimeModel
from scheduling.types import Candidate, EngineLimits, Slo


@dataclass(slots=True)
class Job:
    """One request and what became of it."""

    request_id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    slo: Slo
    value: float = 1.0
    expected_output_tokens: int = 0
    promised: bool = False
    declined: str = ""
    preemptions: int = 0
    token_times_s: list[float] = field(default_factory=list)

    def score(self) -> Score:
        """Score it, strict and paper."""
        return score(self.arrival_s, self.token_times_s, self.slo)


@dataclass(slots=True)
class Run:
    """What a run left behind."""

    jobs: list[Job]
    steps: int
    busy_s: float
    preempted: int
    relegated: int
    spec_tokens: int = 0
    accepted: int = 0

    def precision(self) -> float:
        """Kept promises / promises made."""
        promised = [job for job in self.jobs if job.promised]
        return sum(job.score().attained for job in promised) / max(len(promised), 1)

    def attainment(self) -> float:
        """Share of all requests that attained their SLOs."""
        return sum(job.score().attained for job in self.jobs) / len(self.jobs)


def drive(
    policy: Policy,
    jobs: list[Job],
    true_model: TimeModel,
    limits: EngineLimits,
    planner_model: TimeModel | None = None,
    noise: float = 0.0,
    seed: int = 0,
    margin: MarginEstimator | None = None,
    acceptance: float = 0.0,
    draft_share: float = 1.0,
) -> Run:
    """Serve the jobs to the end; asserts that memory is never negative and that the engine never idles with work.

    What is promised nothing is hopeful, where the policy serves such requests by their deadlines.
    margin: learns from every step and sets the planner's margin. acceptance: chance of a drafted token. draft_share: of
    a request's steps that have drafts, as with a lookup drafter.
    """
    rng = np.random.default_rng(seed)
    planner = planner_model or true_model
    if margin is not None:
        planner = planner.with_margin(margin.margin())
    table = RequestTable(8)
    by_id = {job.request_id: job for job in jobs}
    queue = sorted(jobs, key=lambda job: job.arrival_s)
    now, at, free = 0.0, 0, limits.total_blocks
    run = Run(jobs, 0, 0.0, 0, 0)
    while at < len(queue) or len(table):
        if not len(table) and at < len(queue):
            now = max(now, queue[at].arrival_s)
        fresh: list[Job] = []
        while at < len(queue) and queue[at].arrival_s <= now:
            fresh.append(queue[at])
            at += 1
        for start in range(0, len(fresh), 10):
            batch = fresh[start : start + 10]
            decision = policy.admission_among(1).decide(
                now, table, free, planner, limits, [candidate(job) for job in batch]
            )
            for job in batch:
                job.promised = job.request_id in decision.accepted
                job.declined = decision.declined.get(job.request_id, "")
                hopeful = policy.hope is not None and not job.promised
                add(table, job, job.promised, acceptance, hopeful, draft_share)
        if not len(table):
            continue
        if draft_share < 1.0:
            table.has_drafts[:] = rng.random(len(table.has_drafts)) < draft_share
        plan = policy.batching.plan(now, table, free, planner, limits)
        assert table.has_drafts[plan.decode_slots[plan.spec_tokens > 1]].all()
        for slot in plan.relegate_slots:
            run.relegated += bool(table.standard[slot])
            table.relegate(int(slot))
        for slot in plan.preempt_slots:
            free += int(table.kv_blocks[slot])
            table.preempted(int(slot))
            by_id[table.request_id(int(slot))].preemptions += 1
            run.preempted += 1
        assert len(plan.decode_slots) + len(plan.prefill_slots) > 0, f"empty plan at {now}"
        both = np.concatenate([plan.decode_slots, plan.prefill_slots])
        assert len(set(both.tolist())) == len(both)
        assert not set(both.tolist()) & set(plan.preempt_slots.tolist())
        assert len(both) <= limits.max_batch_requests
        assert int(plan.spec_tokens.sum() + plan.prefill_tokens.sum()) <= limits.max_batch_tokens
        kv = float(table.context[plan.decode_slots].sum())
        chunks, before = plan.prefill_tokens, table.context[plan.prefill_slots]
        attention = float((chunks * (before + 0.5 * chunks)).sum())
        drafted = float(plan.spec_tokens.max() - 1) if len(plan.decode_slots) else 0.0
        shape = BatchShape(float(plan.spec_tokens.sum() + chunks.sum()), len(both), kv, attention, drafted)
        duration = true_model.duration_s(shape) * max(0.5, 1.0 + noise * rng.standard_normal())
        if margin is not None:
            margin.observe_step(planner, shape, duration)
            planner = planner.with_margin(margin.margin())
        now += duration
        run.steps += 1
        run.busy_s += duration
        for slot, verified in zip(plan.decode_slots, plan.spec_tokens, strict=True):
            assert table.prefill_remaining[slot] == 0
            job = by_id[table.request_id(int(slot))]
            free -= grow(table, slot, int(verified), limits)
            count = 1
            while count < verified and rng.random() < acceptance:
                count += 1
            count = min(count, job.output_tokens - len(job.token_times_s))
            table.tokens_out(int(slot), count)
            job.token_times_s += [now] * count
            run.spec_tokens += int(verified) - 1
            run.accepted += count - 1
        for slot, chunk in zip(plan.prefill_slots, plan.prefill_tokens, strict=True):
            assert 0 < chunk <= table.prefill_remaining[slot]
            free -= grow(table, slot, int(chunk), limits)
            table.prefilled(int(slot), int(chunk))
            if table.prefill_remaining[slot] == 0:
                if table.generated[slot] == 0:
                    table.first_token(int(slot), now)
                else:
                    table.tokens_out(int(slot), 1)
                by_id[table.request_id(int(slot))].token_times_s.append(now)
        assert free >= 0, "KV memory is overcommitted"
        for slot in both:
            request_id = table.request_id(int(slot))
            job = by_id[request_id]
            if len(job.token_times_s) == job.output_tokens:
                if margin is not None and job.promised:
                    margin.observe_promise(job.score().attained)
                free += int(table.kv_blocks[slot])
                table.remove(request_id)
    assert free == limits.total_blocks, "KV blocks leaked"
    return run


def candidate(job: Job) -> Candidate:
    """The job as admission sees it."""
    expected = job.expected_output_tokens or job.output_tokens
    return Candidate(
        job.request_id, job.arrival_s, job.prompt_tokens, job.slo, expected, max(job.output_tokens, expected), job.value
    )


def add(
    table: RequestTable, job: Job, standard: bool, acceptance: float, hopeful: bool = False, draft_share: float = 1.0
) -> None:
    """Put the job into the table."""
    table.add(
        job.request_id,
        prompt_tokens=job.prompt_tokens,
        prefill_deadline_s=job.arrival_s + job.slo.ttft_s,
        tpot_s=job.slo.tpot_s,
        standard=standard,
        hopeful=hopeful,
        remaining_output=job.expected_output_tokens or job.output_tokens,
        value=job.value,
        arrival_s=job.arrival_s,
        accept_rate=acceptance,
        draft_share=draft_share,
    )


def grow(table: RequestTable, slot: int, tokens: int, limits: EngineLimits) -> int:
    """Blocks that the tokens take; the table's count is updated."""
    wanted = -(-int(table.context[slot] + tokens) // limits.block_size)
    extra = max(0, wanted - int(table.kv_blocks[slot]))
    table.kv_blocks[slot] += extra
    return extra
