"""Prefill and decode replicas with admission over pairs: what is on its way is counted once, and on the right side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.time_model import BatchShape
from simulation.cluster import Cluster
from simulation.config import ClusterConfig, Lengths
from simulation.engine_step import DECODES, PREFILL_TOKENS
from simulation.results import scores
from simulation.workload import Workload
from tests.simulation.test_invariants import check_invariants, check_steps_run_in_one_go
from tests.simulation.workloads import LOOSE, TIGHT, random_workloads, requests, sessions, small_profile


@st.composite
def fleets(draw: st.DrawFn) -> ClusterConfig:
    """Pairs and mixed fleets under policies that promise over pairs, and under DistServe."""
    prefill, decode = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    both = draw(st.integers(0, 2))
    return ClusterConfig(
        policy=draw(st.sampled_from(["slos", "edf-exact", "dp", "distserve"])),
        routing=draw(st.sampled_from([None, "prefix-affine"])),
        replicas=prefill + decode + both,
        prefill_replicas=prefill,
        colocated_replicas=both,
        lengths=draw(st.sampled_from(Lengths)),
        noise=draw(st.sampled_from([0.0, 0.05])),
        learn_margin=draw(st.booleans()),
        prefix_cache=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )


@settings(max_examples=80, deadline=None)
@given(random_workloads(longest=300), fleets())
def test_steps_run_in_one_go_are_the_steps_run_one_by_one(workload: Workload, config: ClusterConfig) -> None:
    check_steps_run_in_one_go(workload, config)


def check_nothing_on_its_way(cluster: Cluster) -> None:
    """All that was promised to decode replicas has arrived, and each block was counted once."""
    assert cluster.transfers.waiting == 0
    for replica in cluster.replicas:
        assert replica.cache.total_blocks <= replica.free_blocks


@settings(max_examples=40, deadline=None)
@given(random_workloads(), fleets(), st.integers(2048, 8192))
def test_every_token_comes_once_and_both_sides_free_their_blocks(
    workload: Workload, config: ClusterConfig, kv_tokens: int
) -> None:
    cluster = Cluster(workload, small_profile(kv_tokens), config)
    cluster.run()
    check_invariants(cluster)
    check_nothing_on_its_way(cluster)


@settings(max_examples=10, deadline=None)
@given(random_workloads(), fleets())
def test_equal_fleets_give_equal_runs(workload: Workload, config: ClusterConfig) -> None:
    first, second = Cluster(workload, small_profile(), config), Cluster(workload, small_profile(), config)
    first.run()
    second.run()
    assert np.array_equal(first.requests.times, second.requests.times)
    assert np.array_equal(first.requests.promised, second.requests.promised)


def pair(policy: str = "slos", **changes: object) -> ClusterConfig:
    return replace(ClusterConfig(policy, replicas=2, prefill_replicas=1, lengths=Lengths.ORACLE), **changes)  # type: ignore[arg-type]


def test_the_first_token_follows_prefill_transfer_and_a_decode_step() -> None:
    profile = small_profile()
    cluster = Cluster(requests((0.0, 400, 3)), profile, pair())
    cluster.run()
    assert cluster.requests.promised[0]
    model = profile.time_model
    prefill_s = model.duration_s(BatchShape(400, 1, 0, 400 * 200))
    transfer_s = profile.link.seconds(400 * profile.kv_bytes_per_token)
    last_s = model.duration_s(BatchShape(1, 1, 0, 399.5))
    assert cluster.requests.token_times(0)[0] == pytest.approx(prefill_s + transfer_s + last_s)
    prefill, decode = cluster.replicas
    assert (prefill.counters[PREFILL_TOKENS], prefill.counters[DECODES]) == (400, 0)
    assert (decode.counters[PREFILL_TOKENS], decode.counters[DECODES]) == (1, 2)


def test_promises_over_pairs_are_kept_when_the_time_model_is_exact() -> None:
    rng = np.random.default_rng(5)
    starts = np.sort(rng.random(300) * 8.0)
    rows = [(float(t), int(rng.integers(20, 900)), int(rng.integers(2, 90))) for t in starts]
    cluster = Cluster(requests(*rows, slo_class=TIGHT), small_profile(32768), pair())
    cluster.run()
    check_invariants(cluster)
    table = scores(cluster)
    promised = table["promised"]
    assert 0.2 < promised.mean() < 0.999
    assert (table["attained"] & promised).sum() >= 0.995 * promised.sum()


def test_a_prefill_replica_keeps_what_no_decode_replica_can_take() -> None:
    # Memory for two such requests each: the third finds no room to decode beside the first two.
    rows = [(0.0, 400, 200), (0.5, 400, 200), (1.0, 400, 200)]
    cluster = Cluster(requests(*rows), small_profile(1248), pair())
    cluster.run()
    check_invariants(cluster)
    assert cluster.requests.promised.all()
    assert scores(cluster)["attained"].all()
    prefill, decode = cluster.replicas
    assert (prefill.counters[DECODES], decode.counters[DECODES]) == (199, 398)


def test_a_session_goes_on_where_its_kv_is() -> None:
    workload = sessions([[(0.0, 640, 32), (1.0, 700, 5)]], (LOOSE,))
    computed = {}
    for cached in (False, True):
        cluster = Cluster(workload, small_profile(), pair(prefix_cache=cached))
        cluster.run()
        check_invariants(cluster)
        computed[cached] = [int(r.counters[PREFILL_TOKENS]) for r in cluster.replicas]
    assert computed[False] == [640 + 700, 1 + 1]
    # The decode replica holds 671 tokens of the first round, 41 whole blocks, and computes the rest by itself.
    assert computed[True] == [640, 1 + 700 - 41 * 16]


def test_what_a_decode_replica_holds_is_not_sent_again() -> None:
    workload = sessions([[(0.0, 640, 32), (1.0, 700, 5)]], (LOOSE,))
    firsts = {}
    for cached in (False, True):
        cluster = Cluster(workload, small_profile(), pair("distserve", prefix_cache=cached))
        cluster.run()
        check_invariants(cluster)
        firsts[cached] = cluster.requests.token_times(1) - cluster.requests.arrival_s[1]
    profile = small_profile()
    saved_s = 41 * 16 * profile.kv_bytes_per_token / profile.link.bytes_per_s
    gap = {cached: times[1] - times[0] for cached, times in firsts.items()}
    assert gap[False] - gap[True] == pytest.approx(saved_s, rel=0.01)
    # The prefill replica holds the first prompt: 40 blocks.
    model = profile.time_model
    assert firsts[False][0] - firsts[True][0] == pytest.approx(
        sum(model.duration_s(BatchShape(n)) for n in (512, 188)) - model.duration_s(BatchShape(60))
    )


def test_fleets_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match="2 of which do both"):
        ClusterConfig("slos", replicas=3, prefill_replicas=1, colocated_replicas=2)
    with pytest.raises(ValueError, match="set prefill_replicas too"):
        ClusterConfig("slos", replicas=3, colocated_replicas=2)
