"""Behaviour of the simulated cluster on small workloads whose outcome can be worked out."""

from __future__ import annotations

import numpy as np
import pytest

from simulation.cluster import Cluster
from simulation.config import ClusterConfig, Failure, Lengths
from simulation.results import scores, summarize
from tests.simulation.workloads import LOOSE, THINKING, TIGHT, requests, sessions, small_profile


def played(cluster: Cluster) -> Cluster:
    cluster.run()
    return cluster


def test_one_request_takes_what_the_time_model_says() -> None:
    profile = small_profile()
    cluster = played(Cluster(requests((1.0, 300, 5)), profile, ClusterConfig("vllm-v1")))
    prefill = 6.878e-5 * 300 + 0.0248
    decode = 6.878e-5 + 0.0248
    expected = 1.0 + prefill + decode * np.arange(5)
    assert np.allclose(cluster.requests.token_times(0), expected)
    table = scores(cluster)
    assert table.loc[0, "ttft_s"] == pytest.approx(prefill)
    assert table.loc[0, "mean_tpot_s"] == pytest.approx(decode)
    assert bool(table.loc[0, "attained"])


def test_slowdowns_refer_to_the_prompt_alone_on_an_idle_engine() -> None:
    cluster = Cluster(requests((0.0, 900, 1)), small_profile(), ClusterConfig("vllm-v1"))
    chunks = (6.878e-5 * 512 + 0.0248) + (6.878e-5 * 388 + 0.0248)
    assert cluster.requests.ttft_s[0] == pytest.approx(5.0 * chunks)


def test_online_lateness_agrees_with_the_one_scoring_function() -> None:
    starts = [0.2 * i for i in range(60)] + [12.0 + 0.02 * i for i in range(90)]
    rows = [(start, 100 + 37 * (i % 11), 5 + i % 40) for i, start in enumerate(starts)]
    for policy in ("vllm", "vllm-v1", "qoserve"):
        cluster = played(Cluster(requests(*rows, slo_class=TIGHT), small_profile(16384), ClusterConfig(policy)))
        table = scores(cluster)
        assert (table["attained"].to_numpy() == ~cluster.requests.late).all()
        assert 0.02 < table["attained"].mean() < 0.98


def test_thinking_is_held_to_the_tight_pace_and_the_answer_to_the_loose_one() -> None:
    rows = [[(0.0, 50, 40)]]
    workload = sessions(rows, (THINKING,), [0], [20])
    cluster = Cluster(workload, small_profile(), ClusterConfig("vllm-v1"))
    assert cluster.requests.slo(0).thinking_tpot_s == 0.05
    cluster.run()
    times = cluster.requests.token_times(0)
    anchor = max(times[0], float(cluster.requests.ttft_s[0]))
    cluster.requests.produced[0] = 25
    assert cluster.requests.next_due_s(0) == pytest.approx(anchor + 19 * 0.05 + 6 * 0.1)


def test_a_session_goes_on_after_its_tool_and_is_kept_only_whole() -> None:
    workload = sessions([[(0.0, 100, 10), (3.0, 150, 5), (1.5, 200, 5)]], (LOOSE,))
    cluster = played(Cluster(workload, small_profile(), ClusterConfig("vllm-v1")))
    seen = cluster.requests
    for row, delay in ((1, 3.0), (2, 1.5)):
        assert seen.arrival_s[row] == pytest.approx(seen.token_times(row - 1)[-1] + delay)
    table = scores(cluster)
    assert summarize(cluster, table).attained == 1.0
    table.loc[1, "attained"] = False
    assert summarize(cluster, table).attained == 0.0


def test_the_prefix_cache_saves_the_shared_prompt() -> None:
    workload = sessions([[(0.0, 320, 32), (1.0, 400, 5)]], (LOOSE,))
    found = {}
    for cached in (False, True):
        config = ClusterConfig("vllm-v1", prefix_cache=cached)
        found[cached] = played(Cluster(workload, small_profile(), config))
    assert found[False].requests.cached[1] == 0
    # Prompt and output but its last token are resident when the round ends: 351 tokens, 21 whole blocks.
    assert found[True].requests.cached[1] == 21 * 16
    computed = [cluster.replicas[0].counters[1] for cluster in found.values()]
    assert computed[0] - computed[1] == 21 * 16


def test_the_prefix_cache_gives_way_to_running_requests() -> None:
    first = [(0.0, 320, 32), (30.0, 400, 5)]
    others = [[(1.0 + 0.5 * i, 700, 60)] for i in range(12)]
    workload = sessions([first, *others], (LOOSE,))
    cluster = played(Cluster(workload, small_profile(1024), ClusterConfig("vllm-v1", prefix_cache=True)))
    assert cluster.requests.cached[1] == 0


def test_speculation_takes_fewer_steps_and_the_same_tokens() -> None:
    workload = requests((0.0, 60, 200), (0.0, 60, 200))
    steps = {}
    for drafts in (1, 4):
        config = ClusterConfig("vllm-v1", (("spec_tokens", drafts),), speculation=True)
        cluster = played(Cluster(workload, small_profile(), config))
        assert (cluster.requests.produced == 200).all()
        steps[drafts] = cluster.replicas[0].steps
    # At acceptance 0.7 four verified tokens bring (1 - 0.7^4) / 0.3 = 2.53 on average.
    assert steps[1] / steps[4] == pytest.approx(2.53, rel=0.15)


def test_requests_of_a_lost_replica_finish_elsewhere() -> None:
    rows = [(0.05 * i, 200, 60) for i in range(20)]
    config = ClusterConfig("vllm-v1", replicas=2, failures=(Failure(0, 1.0, 2.0),))
    calm = played(Cluster(requests(*rows), small_profile(), ClusterConfig("vllm-v1", replicas=2)))
    hit = played(Cluster(requests(*rows), small_profile(), config))
    assert (hit.requests.produced == 60).all()
    assert hit.replicas[1].steps > calm.replicas[1].steps
    last = [max(cluster.requests.times) for cluster in (calm, hit)]
    assert last[1] > last[0]


def test_nothing_is_lost_while_every_replica_is_away() -> None:
    config = ClusterConfig("slos", failures=(Failure(0, 0.5, 4.0),))
    cluster = played(Cluster(requests(*((0.2 * i, 100, 20) for i in range(10))), small_profile(), config))
    assert (cluster.requests.produced == 20).all()
    times = cluster.requests.times
    assert not ((times > 0.5) & (times < 4.5)).any()


def test_noise_moves_times_and_seeds_repeat_it() -> None:
    workload = requests(*((0.1 * i, 200, 30) for i in range(20)))
    runs = [
        played(Cluster(workload, small_profile(), ClusterConfig("vllm-v1", noise=noise, seed=seed))).requests.times
        for noise, seed in ((0.0, 0), (0.05, 0), (0.05, 0), (0.05, 1))
    ]
    assert not np.array_equal(runs[0], runs[1])
    assert np.array_equal(runs[1], runs[2])
    assert not np.array_equal(runs[1], runs[3])


@pytest.mark.parametrize("policy", ["slos", "edf-exact", "dp"])
def test_promises_are_kept_when_the_time_model_is_exact(policy: str) -> None:
    rng = np.random.default_rng(5)
    starts = np.sort(rng.random(250) * 25.0)
    rows = [(float(t), int(rng.integers(20, 900)), int(rng.integers(2, 90))) for t in starts]
    config = ClusterConfig(policy, lengths=Lengths.ORACLE)
    cluster = played(Cluster(requests(*rows, slo_class=TIGHT), small_profile(32768), config))
    table = scores(cluster)
    promised = table["promised"]
    assert 0.2 < promised.mean() < 0.999
    assert (table["attained"] & promised).sum() >= 0.999 * promised.sum()


def test_impossible_configurations_are_named() -> None:
    with pytest.raises(ValueError, match="replicas must be at least 1"):
        ClusterConfig("slos", replicas=0)
    with pytest.raises(ValueError, match="noise must be"):
        ClusterConfig("slos", noise=-1.0)
    with pytest.raises(ValueError, match="co-located"):
        ClusterConfig("distserve", replicas=2, prefill_replicas=1, failures=(Failure(0, 1.0, 1.0),))
