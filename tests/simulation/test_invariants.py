"""What must hold for every workload and every policy: tokens are conserved, memory is never negative, time goes on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling import registry
from scheduling.request_table import RequestTable
from simulation import engine_step
from simulation.cluster import Cluster
from simulation.config import ClusterConfig, Failure, Lengths
from simulation.engine_step import COUNTERS, SIDE_ROWS, Engine, execute
from simulation.workload import Workload
from tests.simulation.workloads import random_workloads, requests, small_profile

POLICIES = tuple(name for name in registry.names() if name != "distserve")


@st.composite
def configurations(draw: st.DrawFn) -> ClusterConfig:
    """Any policy on one to three replicas, with noise, wrong models, caches, speculation and failures."""
    replicas = draw(st.integers(1, 3))
    failures = draw(
        st.lists(
            st.builds(Failure, st.integers(0, replicas - 1), st.floats(0.01, 20.0), st.floats(0.1, 5.0)), max_size=2
        )
    )
    learns = draw(st.booleans())
    return ClusterConfig(
        policy=draw(st.sampled_from(POLICIES)),
        replicas=replicas,
        lengths=draw(st.sampled_from(Lengths)),
        noise=draw(st.sampled_from([0.0, 0.03, 0.2])),
        margin=1.0 if learns else draw(st.sampled_from([1.0, 1.1])),
        learn_margin=learns,
        time_error=draw(st.sampled_from([0.0, -0.1, 0.2])),
        prefix_cache=draw(st.booleans()),
        speculation=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
        failures=tuple(failures),
    )


def check_invariants(cluster: Cluster) -> None:
    """After a run: every token came once, in order, after its request; every block is free again."""
    workload, seen = cluster.workload, cluster.requests
    assert seen.finished.all()
    assert (seen.produced == workload.output_tokens).all()
    for row in range(len(workload)):
        times = seen.token_times(row)
        assert times[0] > seen.arrival_s[row]
        assert (np.diff(times) >= 0).all()
        assert times[-1] <= cluster.now_s
    for replica in cluster.replicas:
        assert len(replica.table) == 0
        assert replica.free_blocks == replica.limits.total_blocks
        assert replica.cache.total_blocks <= replica.limits.total_blocks
        assert replica.busy_s <= cluster.now_s + 1e-9
    assert cluster.controller.waiting == 0


@settings(max_examples=50, deadline=None)
@given(random_workloads(), configurations())
def test_every_token_comes_and_every_block_is_freed(workload: Workload, config: ClusterConfig) -> None:
    cluster = Cluster(workload, small_profile(), config)
    cluster.run()
    check_invariants(cluster)


@settings(max_examples=20, deadline=None)
@given(
    random_workloads(),
    st.sampled_from([(1, 2), (1, 3), (2, 3), (2, 4)]),
    st.sampled_from([0.0, 0.05]),
    st.integers(2048, 8192),
)
def test_the_same_for_disaggregated_clusters(
    workload: Workload, ratio: tuple[int, int], noise: float, kv_tokens: int
) -> None:
    config = ClusterConfig("distserve", replicas=ratio[1], prefill_replicas=ratio[0], noise=noise)
    cluster = Cluster(workload, small_profile(kv_tokens), config)
    cluster.run()
    check_invariants(cluster)


@settings(max_examples=12, deadline=None)
@given(random_workloads(), configurations())
def test_equal_configurations_give_equal_runs(workload: Workload, config: ClusterConfig) -> None:
    first, second = Cluster(workload, small_profile(), config), Cluster(workload, small_profile(), config)
    first.run()
    second.run()
    assert np.array_equal(first.requests.times, second.requests.times)
    assert np.array_equal(first.requests.promised, second.requests.promised)
    assert first.events == second.events


def test_an_event_in_the_past_is_refused() -> None:
    cluster = Cluster(requests((0.0, 10, 2)), small_profile(), ClusterConfig("vllm-v1"))
    cluster.run()
    with pytest.raises(ValueError, match="already"):
        cluster.schedule(cluster.now_s - 0.1, None)  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.booleans())
def test_the_compiled_step_moves_the_table_as_the_table_does_itself(seed: int, verified: int, thinks: bool) -> None:
    rng = np.random.default_rng(seed)
    ours, reference = RequestTable(4), RequestTable(4)
    side = np.zeros((SIDE_ROWS, 4), np.int64)
    lengths = [int(n) for n in rng.integers(1, 30, 3)]
    thinking = [int(rng.integers(1, n + 1)) if thinks else 0 for n in lengths]
    for index, (length, tight) in enumerate(zip(lengths, thinking, strict=True)):
        for table in (ours, reference):
            slot = table.add(
                str(index),
                prompt_tokens=40 + index,
                prefill_deadline_s=0.2,
                tpot_s=0.05 if tight else 0.1,
                answer_tpot_s=0.1,
                remaining_output=20,
                max_remaining_output=30,
            )
        side[:, slot] = (index, length, tight)
    nothing = np.empty(0, np.int64)
    late = np.zeros(3, np.bool_)
    now, free = 0.0, 1000
    emitted, finished = np.zeros((2, 4), np.int64), np.zeros(4, np.int64)
    counters, state = np.zeros(COUNTERS, np.int64), np.array([seed], np.uint64)
    lines = small_profile().time_model.array
    while len(ours):
        slots = ours.slots()
        prefills = slots[ours.prefill_remaining[slots] > 0]
        decodes = slots[ours.prefill_remaining[slots] == 0]
        chunks = np.minimum(ours.prefill_remaining[prefills], rng.integers(1, 30, len(prefills)))
        engine = Engine(
            lines, 16, 0.6, ours.ints, ours.floats, ours.flags, side, state, emitted, finished, late, counters
        )
        verify = np.full(len(decodes), verified)
        end, emissions, done, free = execute(
            now, 1.0, free, engine, decodes, verify, prefills, chunks, nothing, nothing
        )
        for slot, chunk in zip(prefills, chunks, strict=True):
            reference.prefilled(int(slot), int(chunk))
        for slot, count in emitted[:, :emissions].T:
            row = int(slot)
            for _ in range(count):
                if reference.generated[row] == 0:
                    reference.first_token(row, end)
                else:
                    reference.tokens_out(row, 1)
                if reference.generated[row] == thinking[row]:
                    reference.thinking_ended(row)
        for name in ("prefill_remaining", "context", "generated", "remaining_output", "max_remaining_output"):
            assert np.array_equal(getattr(ours, name), getattr(reference, name)), name
        for name in ("next_deadline_s", "tpot_s"):
            assert np.allclose(getattr(ours, name), getattr(reference, name)), name
        for slot in finished[:done]:
            assert ours.generated[slot] == lengths[int(side[engine_step.ROW, slot])]
            free += int(ours.kv_blocks[slot])
            ours.remove(ours.request_id(int(slot)))
            reference.remove(reference.request_id(int(slot)))
        assert end > now
        now = end
    assert free == 1000


def check_steps_run_in_one_go(workload: Workload, config: ClusterConfig) -> None:
    """The same run with an event for every step, and with as few as possible."""
    config = replace(config, noise=0.0, learn_margin=False)
    together = Cluster(workload, small_profile(), config)
    single = Cluster(workload, small_profile(), config)
    single.one_by_one = True
    together.run()
    single.run()
    assert np.array_equal(together.requests.times, single.requests.times)
    assert np.array_equal(together.requests.late, single.requests.late)
    assert np.array_equal(together.requests.preemptions, single.requests.preemptions)
    for ours, theirs in zip(together.replicas, single.replicas, strict=True):
        assert ours.steps == theirs.steps
        assert np.array_equal(ours.counters, theirs.counters)
    assert together.events <= single.events


@settings(max_examples=200, deadline=None)
@given(random_workloads(longest=300), configurations(), st.booleans())
def test_steps_run_in_one_go_are_the_steps_run_one_by_one(
    workload: Workload, config: ClusterConfig, undisturbed: bool
) -> None:
    if undisturbed:
        arrival_s = np.sort(np.nan_to_num(workload.arrival_s))
        workload = replace(workload, arrival_s=arrival_s, next_row=np.full(len(workload), -1))
        config = replace(config, failures=())
    check_steps_run_in_one_go(workload, config)


def test_a_run_of_steps_ends_where_another_replica_may_give_a_request_back() -> None:
    prompts = (164, 289, 236, 199, 105, 128, 141, 243, 266, 10, 209, 65)
    workload = requests(*[(0.0, prompt, 1) for prompt in prompts], (0.0, 99, 5))
    check_steps_run_in_one_go(workload, ClusterConfig("slos", replicas=2, lengths=Lengths.ORACLE))


def test_a_request_in_its_last_step_is_not_asked_about_again() -> None:
    lengths = [(16, 1), (18, 55), (35, 2), (36, 42), (39, 9), (57, 24), (100, 27), (102, 21), (119, 43), (136, 49)]
    lengths += [(142, 32), (161, 32), (167, 24), (180, 28), (247, 1), (255, 16), (287, 53), (290, 6)]
    workload = requests(*[(0.0, prompt, output) for prompt, output in lengths])
    check_steps_run_in_one_go(workload, ClusterConfig("slos", replicas=3, lengths=Lengths.ORACLE))


def test_a_run_of_steps_ends_for_requests_that_arrive_at_the_same_moment() -> None:
    check_steps_run_in_one_go(requests(*[(0.0, 50, 40)] * 3), ClusterConfig("vllm-v1"))
