"""Each baseline by what defines it: plans of single steps, and small runs."""

from __future__ import annotations

import numpy as np
import pytest

from scheduling import registry
from scheduling.policy import BatchPlan
from scheduling.request_table import RequestTable
from scheduling.time_model import BatchShape, TimeModel
from scheduling.types import EngineLimits
from simulation.cluster import Cluster
from simulation.config import ClusterConfig
from tests.simulation.workloads import LOOSE, TIGHT, requests, small_profile

LIMITS = EngineLimits(4096, 256, 16, 4096, 8192)
MODEL = TimeModel(((0.02, 1e-4, 0.0, 0.0, 0.0, 0.0),))
BASELINES = ("vllm", "vllm-v1", "sarathi", "distserve", "qoserve")


def table_of(*rows: dict[str, float]) -> RequestTable:
    """A table of requests; `blocks` follow from the context unless given."""
    table = RequestTable()
    for index, row in enumerate(rows):
        columns = {"prompt_tokens": 100, "prefill_deadline_s": 10.0, "tpot_s": 0.1, **row}
        columns.setdefault("kv_blocks", -(-int(columns.get("context", 0)) // 16))
        table.add(str(index), **columns)  # type: ignore[arg-type]
    return table


def decoding(context: int = 100, due_s: float = 10.0, tpot_s: float = 0.1) -> dict[str, float]:
    """A request with its first token out."""
    return {
        "prompt_tokens": context,
        "context": context,
        "generated": 1,
        "prefill_remaining": 0,
        "next_deadline_s": due_s,
        "tpot_s": tpot_s,
    }


def waiting(prompt: int, due_s: float = 10.0) -> dict[str, float]:
    """A request that has not begun."""
    return {"prompt_tokens": prompt, "prefill_deadline_s": due_s}


def plan(
    name: str, table: RequestTable, free: int = 4096, limits: EngineLimits = LIMITS, **options: object
) -> BatchPlan:
    """The policy's next step at time 0."""
    return registry.get(name, **options).batching.plan(0.0, table, free, MODEL, limits)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_promise_to_all_and_never_idle(name: str) -> None:
    assert registry.get(name).admits_all
    for rows in ([waiting(50)], [decoding()], [waiting(3000), decoding()], [waiting(5000)]):
        found = plan(name, table_of(*rows))
        assert len(found.decode_slots) + len(found.prefill_slots) > 0
        assert found.predicted_s > 0


@pytest.mark.parametrize("name", BASELINES)
def test_a_decode_without_memory_evicts_whoever_came_last(name: str) -> None:
    rows = [decoding(160), decoding(160), decoding(160)]
    found = plan(name, table_of(*rows), free=0)
    assert found.preempt_slots.tolist() == [2]
    assert found.decode_slots.tolist() == [0, 1]


def test_vllm_2024_stops_decodes_for_whole_prompts() -> None:
    table = table_of(decoding(), decoding(), waiting(700), waiting(800), waiting(900))
    found = plan("vllm", table, token_budget=2048)
    assert found.prefill_slots.tolist() == [2, 3]
    assert found.prefill_tokens.tolist() == [700, 800]
    assert len(found.decode_slots) == 0
    assert plan("vllm", table_of(decoding(), decoding())).decode_slots.tolist() == [0, 1]


def test_vllm_2024_keeps_a_watermark_free() -> None:
    table = table_of(decoding(), waiting(160))
    assert plan("vllm", table, free=10 + 41, watermark=0.01).prefill_slots.tolist() == [1]
    assert plan("vllm", table, free=10 + 39, watermark=0.01).decode_slots.tolist() == [0]


def test_vllm_v1_decodes_first_and_fills_one_budget_with_chunks() -> None:
    table = table_of(decoding(), decoding(), waiting(700), waiting(800), waiting(900))
    found = plan("vllm-v1", table, token_budget=1024)
    assert found.decode_slots.tolist() == [0, 1]
    assert found.prefill_slots.tolist() == [2, 3]
    assert found.prefill_tokens.tolist() == [700, 1024 - 2 - 700]


def test_vllm_v1_knows_no_slo() -> None:
    calm, tense = (table_of(decoding(due_s=due), waiting(3000)) for due in (100.0, 0.021))
    for found in (plan("vllm-v1", calm), plan("vllm-v1", tense)):
        assert found.prefill_tokens.tolist() == [2047]


def test_sarathis_step_fits_the_tightest_tpot_with_every_decode_in_it() -> None:
    for tight in (0.05, 0.08):
        rows = [decoding(tpot_s=0.1)] * 5 + [decoding(tpot_s=tight), waiting(4000)]
        found = plan("sarathi", table_of(*rows))
        assert len(found.decode_slots) == 6
        assert found.prefill_tokens.tolist() == [MODEL.max_new_tokens(tight) - 6]
        assert found.predicted_s == pytest.approx(tight, abs=2e-4)
        shape = BatchShape(6 + found.prefill_tokens[0], 7)
        assert found.predicted_s == pytest.approx(MODEL.duration_s(shape))


def test_sarathi_is_stall_free_where_vllm_2024_stalls() -> None:
    workload = requests(
        *((0.0, 60, 60) for _ in range(4)), *((0.5 + 0.3 * i, 500, 20) for i in range(8)), slo_class=TIGHT
    )
    worst = {}
    for name in ("vllm", "sarathi"):
        cluster = Cluster(workload, small_profile(16384), ClusterConfig(name))
        cluster.run()
        worst[name] = max(float(np.diff(cluster.requests.token_times(row)).max()) for row in range(4))
    assert worst["sarathi"] <= 0.0501
    assert worst["vllm"] > 0.06


def test_qoserve_sizes_the_chunk_by_the_slack_of_decodes() -> None:
    sizes = []
    for due in (0.03, 0.08, 0.15):
        found = plan("qoserve", table_of(decoding(due_s=due), waiting(4000)))
        sizes.append(int(found.prefill_tokens[0]))
        assert found.predicted_s == pytest.approx(due, abs=2e-4)
    assert sizes == sorted(sizes)
    assert plan("qoserve", table_of(decoding(due_s=5.0), waiting(4000)), longest_s=0.1).predicted_s == pytest.approx(
        0.1, abs=2e-4
    )


def test_qoserves_alpha_moves_from_earliest_deadline_to_shortest_prompt() -> None:
    table = table_of(waiting(3500, due_s=1.0), waiting(100, due_s=1.1))
    assert plan("qoserve", table, alpha=0.0).prefill_slots[0] == 0
    assert plan("qoserve", table, alpha=2.0).prefill_slots[0] == 1


def test_qoserve_relegates_what_is_lost_and_serves_it_last() -> None:
    table = table_of(waiting(3000, due_s=0.1), waiting(3000, due_s=2.0), decoding(due_s=-0.01))
    found = plan("qoserve", table)
    assert sorted(found.relegate_slots.tolist()) == [0, 2]
    assert found.prefill_slots[0] == 1
    assert found.decode_slots.tolist() == [2]
    behind = table_of(waiting(1800, due_s=0.3), waiting(1800, due_s=0.31))
    assert plan("qoserve", behind).relegate_slots.tolist() == []
    assert plan("qoserve", behind, relegate_behind=True).relegate_slots.tolist() == [1]


def test_distserve_never_mixes_prompts_and_decodes_and_moves_kv_over_the_link() -> None:
    workload = requests(*((0.2 * i, 400, 30) for i in range(30)))
    profile = small_profile(16384)
    cluster = Cluster(workload, profile, ClusterConfig("distserve", replicas=2, prefill_replicas=1))
    cluster.run()
    prefill, decode = (replica.counters for replica in cluster.replicas)
    assert prefill[1] == 30 * 400
    assert prefill[2] == 0
    assert decode[1] == 0
    assert decode[2] == 30 * 29
    transfer = profile.link.seconds(400 * profile.kv_bytes_per_token)
    for row in range(30):
        first, second = cluster.requests.token_times(row)[:2]
        assert second - first >= transfer + 0.02


def test_distserve_waits_for_memory_on_the_decode_side() -> None:
    workload = requests(*((0.0, 400, 60) for _ in range(12)))
    cluster = Cluster(workload, small_profile(2048), ClusterConfig("distserve", replicas=2, prefill_replicas=1))
    cluster.run()
    gaps = [float(np.diff(cluster.requests.token_times(row)[:2])[0]) for row in range(12)]
    assert max(gaps) > 1.0
    assert cluster.requests.finished.all()


def test_a_burst_ranks_the_policies_as_published() -> None:
    """A burst of long prompts beside tight decodes: relegation and slack beat fixed budgets, those beat 2024."""
    rows = [(0.05 * i, 300, 60) for i in range(60)] + [(1.0 + 0.01 * i, 1500, 20) for i in range(20)]
    kept = {}
    for name in ("vllm", "vllm-v1", "qoserve"):
        cluster = Cluster(
            requests(*rows, slo_class=LOOSE), small_profile(65536, max_batch_tokens=4096), ClusterConfig(name)
        )
        cluster.run()
        kept[name] = int((~cluster.requests.late).sum())
    assert kept["qoserve"] >= kept["vllm-v1"] >= kept["vllm"]
    assert kept["qoserve"] > kept["vllm"]
