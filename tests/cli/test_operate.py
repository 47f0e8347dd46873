"""slosctl against a running cluster: tables, JSON, exit codes."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.errors import Exit
from simulation.profiles import load
from tests.cluster import Cluster, run_slosctl


def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.05)
    return value


@pytest.fixture
def request_id(emulated_cluster: Cluster) -> str:
    """A request that has just finished."""
    answer = emulated_cluster.slosctl_json("chat", "--max-tokens", "8", "--class", "coding", "What is a deadline?")
    return str(answer["request_id"])


def test_status(emulated_cluster: Cluster, request_id: str) -> None:
    text = emulated_cluster.slosctl("status", "--check")
    assert "2 of 2 ready" in text
    assert "no measurements" in text
    data = emulated_cluster.slosctl_json("status")
    assert data["redis_ok"] is True
    assert data["models"] == [emulated_cluster.model]
    assert {item["replica"] for item in data["replicas"]} == {"worker-0", "worker-1"}
    coding = until(
        lambda: [c for c in emulated_cluster.slosctl_json("status")["classes"] if c["slo_class"] == "coding"]
    )
    assert coding[0]["finished"] >= 1


def test_replicas(emulated_cluster: Cluster) -> None:
    assert "worker-1" in emulated_cluster.slosctl("replicas", "ls")
    data = emulated_cluster.slosctl_json("replicas", "describe", "worker-0")
    assert data["emulated"] is True
    assert data["time_model"]["lines"]
    assert data["time_margin"] > 1.0
    assert isinstance(data["step_errors"], dict)
    assert "kv_capacity_tokens" in emulated_cluster.slosctl("replicas", "describe", "worker-0")
    unknown = run_slosctl(emulated_cluster.folder, "replicas", "describe", "worker-9")
    assert unknown.returncode == Exit.NOT_FOUND
    assert "worker-0, worker-1" in unknown.stderr
    busy = run_slosctl(emulated_cluster.folder, "replicas", "rm", "worker-0")
    assert busy.returncode == Exit.REFUSED
    assert "worker-0" in busy.stderr
    try:
        drained = emulated_cluster.slosctl_json("replicas", "drain", "worker-0", "--wait", "30")
        assert drained["state"] == "drained"
        answer = emulated_cluster.slosctl_json("chat", "--max-tokens", "4", "hello")
        assert answer["promise"]["replica"] == "worker-1"
    finally:
        emulated_cluster.slosctl("replicas", "undrain", "worker-0")
    until(lambda: emulated_cluster.slosctl_json("replicas", "describe", "worker-0")["state"] == "ready")


def test_slo_classes(emulated_cluster: Cluster) -> None:
    shipped = {item["name"] for item in emulated_cluster.slosctl_json("slo", "ls")}
    assert {"chatbot", "coding", "summarization", "tool", "reasoning"} <= shipped
    incomplete = run_slosctl(emulated_cluster.folder, "slo", "set", "support", "--tpot-ms", "90")
    assert incomplete.returncode == Exit.USAGE
    assert "--ttft-ms" in incomplete.stderr
    try:
        emulated_cluster.slosctl("slo", "set", "support", "--ttft-slowdown", "4", "--tpot-ms", "90", "--value", "2")
        changed = emulated_cluster.slosctl_json("slo", "set", "support", "--ttft-ms", "1500")
        assert (changed["ttft_ms"], changed["ttft_slowdown"], changed["value"]) == (1500, 0, 2)
        assert "support" in emulated_cluster.slosctl("slo", "ls")
        answer = emulated_cluster.slosctl_json("chat", "--class", "support", "--max-tokens", "4", "hello")
        assert answer["promise"]["ttft_ms"] == 1500
    finally:
        assert emulated_cluster.slosctl("slo", "rm", "support").split() == ["support", "removed"]
    gone = run_slosctl(emulated_cluster.folder, "slo", "rm", "support")
    assert gone.returncode == Exit.NOT_FOUND
    refused = run_slosctl(emulated_cluster.folder, "chat", "--class", "support", "hello")
    assert refused.returncode in (Exit.NOT_FOUND, Exit.REFUSED)
    assert "support" in refused.stderr


def test_tenants(emulated_cluster: Cluster) -> None:
    try:
        emulated_cluster.slosctl("tenants", "set", "acme", "--weight", "3")
        changed = emulated_cluster.slosctl_json("tenants", "set", "acme", "--default-class", "coding")
        assert changed == {"name": "acme", "weight": 3, "default_class": "coding"}
        assert "acme" in emulated_cluster.slosctl("tenants", "ls")
        answer = emulated_cluster.slosctl_json("chat", "--tenant", "acme", "--max-tokens", "4", "hello")
        assert answer["promise"]["slo_class"] == "coding"
    finally:
        assert emulated_cluster.slosctl_json("tenants", "rm", "acme") == {"removed": "acme"}
    missing = run_slosctl(emulated_cluster.folder, "tenants", "set", "x", "--default-class", "nothing")
    assert missing.returncode in (Exit.NOT_FOUND, Exit.REFUSED)
    assert "nothing" in missing.stderr


def test_requests(emulated_cluster: Cluster, request_id: str) -> None:
    listed = emulated_cluster.slosctl_json("requests", "ls")
    assert request_id in {item["request_id"] for item in listed}
    assert request_id in emulated_cluster.slosctl("requests", "ls")
    shown = emulated_cluster.slosctl_json("requests", "show", request_id)
    assert shown["phase"] == "finished"
    assert shown["output_tokens"] == 8
    text = emulated_cluster.slosctl("requests", "show", request_id)
    assert "8 output tokens" in text
    for command in ("show", "cancel"):
        unknown = run_slosctl(emulated_cluster.folder, "requests", command, "no-such-request")
        assert unknown.returncode == Exit.NOT_FOUND
        assert "no-such-request" in unknown.stderr


def test_a_running_request_is_cancelled(emulated_cluster: Cluster) -> None:
    name = f"to-cancel-{uuid.uuid4().hex}"
    body = {
        "model": emulated_cluster.model,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4000,
        "ignore_eos": True,
        "stream": True,
    }
    address = f"{emulated_cluster.url}/v1/chat/completions"
    with httpx.stream("POST", address, json=body, headers={"x-request-id": name}, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        running = emulated_cluster.slosctl_json("requests", "ls", "--running")
        assert name in {item["request_id"] for item in running}
        assert emulated_cluster.slosctl_json("requests", "cancel", name) == {"cancelled": name}
        said = [line for line in lines if line]
    assert json.loads(said[-2].removeprefix("data: "))["error"]["code"] == "cancelled"
    shown = emulated_cluster.slosctl_json("requests", "show", name)
    assert (shown["phase"], shown["finish_reason"]) == ("finished", "cancelled")


def test_explain(emulated_cluster: Cluster, request_id: str, tmp_path: Path) -> None:
    data = emulated_cluster.slosctl_json("explain", request_id)
    assert data["summary"]
    assert data["plan"]
    text = emulated_cluster.slosctl("explain", request_id, "--plot", str(tmp_path / "plan.png"))
    assert data["summary"] in text
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    unknown = run_slosctl(emulated_cluster.folder, "explain", "no-such-request")
    assert unknown.returncode == Exit.NOT_FOUND


def test_chat(emulated_cluster: Cluster) -> None:
    done = run_slosctl(emulated_cluster.folder, "chat", "--max-tokens", "6", "--class", "chatbot", "hello")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "chatbot" in done.stderr
    assert "first token after" in done.stderr
    assert "6 tokens" in done.stderr
    talk = emulated_cluster.slosctl("chat", "--quiet", "--max-tokens", "4", input="one\n\ntwo\n")
    assert len(talk.strip().splitlines()) >= 2
    wrong = run_slosctl(emulated_cluster.folder, "chat", "--model", "gpt-9", "hello")
    assert wrong.returncode == Exit.NOT_FOUND
    assert "gpt-9" in wrong.stderr
    impossible = run_slosctl(emulated_cluster.folder, "chat", "--reject", "--tpot-ms", "0.001", "hello")
    assert impossible.returncode == Exit.REFUSED
    assert "Traceback" not in impossible.stderr


def test_top(emulated_cluster: Cluster) -> None:
    text = emulated_cluster.slosctl("top", "--count", "2", "--interval", "0.1")
    assert "worker-0" in text
    assert "worker-1" in text
    pictures = emulated_cluster.slosctl("top", "--count", "2", "--interval", "0.1", "--json").splitlines()
    assert len(pictures) == 2
    for picture in map(json.loads, pictures):
        assert {replica["replica"] for replica in picture["replicas"]} == {"worker-0", "worker-1"}
        assert isinstance(picture["running"], list)


def test_profile(emulated_cluster: Cluster, tmp_path: Path) -> None:
    assert "worker-0" in emulated_cluster.slosctl("profile")
    text = emulated_cluster.slosctl("profile", "worker-1", "--explain", "--write", str(tmp_path / "profile.json"))
    assert "per token computed" in text
    profile = load(str(tmp_path / "profile.json"))
    described = emulated_cluster.slosctl_json("replicas", "describe", "worker-1")
    assert profile.time_model.lines
    assert profile.limits.total_blocks * profile.limits.block_size == described["kv_capacity_tokens"]
    assert (
        json.loads((tmp_path / "profile.json").read_text())
        == emulated_cluster.slosctl_json("profile", "worker-1")["worker-1"]
    )
    unknown = run_slosctl(emulated_cluster.folder, "profile", "worker-9")
    assert unknown.returncode == Exit.NOT_FOUND


def test_bench_lists_what_can_run(emulated_cluster: Cluster) -> None:
    text = emulated_cluster.slosctl("bench")
    assert "overhead" in text
