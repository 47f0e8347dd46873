"""A whole sweep with emulated engines, through slosctl: every policy and rate is in the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import render


def bench(name: str, model_folder: Path, out: Path) -> tuple[dict[str, Any], str]:
    """Run a short sweep of a benchmark on emulated engines; what it stored, and what it printed."""
    command = [sys.executable, "-m", "cli.main", "bench", name, "--engine", "emulated", "--rates", "2", "--quick"]
    command += ["--duration", "3", "--out", str(out)]
    environment = {**os.environ, "SLOS_MODEL_DIR": str(model_folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text()), done.stdout


@pytest.mark.timeout(300)
def test_bench_slo_compares_both_policies_on_the_same_requests(model_folder: Path, tmp_path: Path) -> None:
    whole, printed = bench("slo", model_folder, tmp_path / "slo.json")
    ours, stock = whole["result"]["rows"]
    assert (ours["policy"], stock["policy"]) == ("slos", "vllm")
    totals = [next(c for c in row["classes"] if c["application"] == "all") for row in (ours, stock)]
    assert totals[0]["sessions"] == totals[1]["sessions"] > 0
    assert totals[0]["output_tokens"] == totals[1]["output_tokens"]
    # vLLM's scheduler admits everything; what it is told is a promise like any other.
    assert totals[1]["promised"] == totals[1]["requests"]
    assert ours["margin"] >= 1.0
    assert ours["step_time_measured_over_predicted"]["p50"] > 0
    assert "emulated" in render.section(whole)
    assert "precision" in printed


@pytest.mark.timeout(300)
def test_bench_features_turns_each_of_them_off_and_on(model_folder: Path, tmp_path: Path) -> None:
    whole, _ = bench("features", model_folder, tmp_path / "features.json")
    without, speculation = whole["result"]["speculation"]["rows"]
    assert (without["policy"], speculation["policy"]) == ("plain", "speculation")
    assert without["draft_tokens"] == 0
    assert 0 < speculation["accepted_draft_tokens"] < speculation["draft_tokens"]
    no_cache, cache = whole["result"]["prefix cache"]["rows"]
    assert (no_cache["policy"], cache["policy"]) == ("no prefix cache", "prefix cache")
    for one, other in ((without, speculation), (no_cache, cache)):
        totals = [next(c for c in row["classes"] if c["application"] == "all") for row in (one, other)]
        assert totals[0]["output_tokens"] == totals[1]["output_tokens"] > 0
    assert "Prefix cache. " in render.section(whole)
