"""The benchmarks that need the real engine, cut so short that their numbers mean nothing: they must run."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

import pytest

from benchmarks import kv_transfer, overhead, render, step_scheduler, sweep, validity
from engine.kv.config import KvConfig
from engine.vllm.config import VllmConfig
from loadtest.own_cluster import OwnCluster
from loadtest.records import Record
from tests.cluster import Cluster

pytestmark = [pytest.mark.real_engine, pytest.mark.timeout(600)]


def test_the_simulator_plays_what_the_real_cluster_served(real_cluster: Cluster, tmp_path: Path) -> None:
    work = sweep.Workload("mixed", "poisson", 8.0, 0.05, 1.0, 3, 120.0)
    profile, window_tokens = validity.fitted_profile(real_cluster.grpc_address, tmp_path)
    assert profile.limits.max_model_len == window_tokens
    assert sweep.knee_rate_per_s(profile.time_model, work, window_tokens) > 0
    target = OwnCluster(real_cluster.http_address, real_cluster.grpc_address, tmp_path)
    data = sweep.load(target, work, 1.0, seed=3, scale=4.0, out=tmp_path / "load.json")
    assert data["facts"]["emulated"] is False
    records = [Record.from_dict(r) for r in data["records"]]
    assert len(records) >= 4
    real = validity.real_figures(records)
    simulated = validity.simulate(records, profile, "slos", scale=4.0, engine=validity.Engine(margin=1.1))
    assert real.requests == real.finished == simulated.finished == len(records)
    assert real.prompt_tokens == simulated.prompt_tokens
    assert real.output_tokens == simulated.output_tokens == sum(r.planned_output_tokens for r in records)
    assert set(real.to_dict()) == set(simulated.to_dict())
    assert all(value is not None for value in {**simulated.to_dict(), "precision": 0}.values())
    json.dumps([real.to_dict(), simulated.to_dict(), validity.compare(real, simulated)])


def test_both_sides_of_the_overhead_serve_the_same_bursts(real_cluster: Cluster, model_folder: Path) -> None:
    config = VllmConfig(model_dir=model_folder, omp_threads_bind="0", policy="stock")
    given = argparse.Namespace(requests=2, pairs=2, singles=2)
    result = asyncio.run(overhead.both(real_cluster.grpc_address, config, given))
    assert len(result["throughput_ratios"]) == 2
    assert result["throughput_ratio_median"] > 0
    assert all(rate > 0 for rate in (*result["direct_tokens_per_s"], *result["cluster_tokens_per_s"]))
    assert result["direct_ttft_ms"]["p50"] > 0


def test_both_schedulers_hold_the_same_requests_and_ours_costs_time(model_folder: Path) -> None:
    row = step_scheduler.added(model_folder, running=8, steps=100, policy="slos")
    assert 0 < row["vllm_plain_ms"]["p50"] < row["step_scheduler_ms"]["p50"]
    assert 0 < row["own_code_ms"]["p50"] < row["step_scheduler_ms"]["p50"]
    assert "8 running" in render.step_scheduler({"8 running": row})


@pytest.mark.parametrize("backend", ["gloo", "tcp"])
def test_a_transfer_is_compared_with_the_raw_link(backend: str) -> None:
    result = kv_transfer.measure([256, 1024], 2, 1, "cpu", KvConfig(backend=backend))
    assert (result["backend"], result["raw_backend"]) == (backend, "gloo")
    small, large = result["rows"]
    assert large["bytes"] == 4 * small["bytes"]
    assert all(row["raw_bytes_per_s"] > 0 and row["exchange_bytes_per_s"] > 0 for row in result["rows"])
    (hidden,) = result["behind_compute"]
    assert hidden["tokens"] == 256
    assert hidden["compute_s"] > 0
    assert f"{backend}, MB/s" in render.kv_transfer({"backends": [result]})
