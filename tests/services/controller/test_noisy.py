"""A replica whose steps take longer or shorter than predicted: the margin is learned, planned with and shown."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

from protos.slos.v1 import common_pb2
from tests.fixtures.controller import controlled
from tests.services.controller.load import generate_request, prompt_of, run_all

BRISK = common_pb2.SloSpec(slo_class="chatbot", ttft_ms=400.0, tpot_ms=50.0)


def test_the_margin_of_a_noisy_replica_is_learned_and_shown(tmp_path: Path) -> None:
    with controlled(tmp_path, workers=1, worker_arguments=("--time-noise", "0.08")) as cluster:
        cold = cluster.replicas()["worker-0"].time_margin
        assert cold >= 1.1
        requests = [generate_request(prompt_of(seed, 50, 400), max_tokens=30, slo=BRISK) for seed in range(150)]
        answers = run_all(cluster.grpc_address, requests, gap_s=0.02)
        assert [answer.finish for answer in answers] == ["length"] * len(requests)
        assert any(answer.last is not None and answer.last.outcome.promised for answer in answers)
        replica = cluster.replicas()["worker-0"]
        assert replica.time_margin > cold
        assert json.loads(replica.time_model_json)["margin"] == replica.time_margin
        kinds = json.loads(replica.margin_json)
        assert sum(kind["steps"] for kind in kinds.values()) > 50
        assert all(0.7 < kind["p50"] <= kind["largest"] for kind in kinds.values())
        with urllib.request.urlopen(f"{cluster.url}/metrics", timeout=10.0) as response:
            metrics = response.read().decode()
        assert f'slos:time_margin_ratio{{replica="worker-0"}} {replica.time_margin:g}' in metrics
        cluster.settled()
