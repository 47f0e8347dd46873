"""Whole runs against the emulated cluster, in processes of their own: locust changes the one it is loaded into."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cli.state import process_started
from tests.cluster import Cluster

SMALL = ("--rate", "3", "--duration", "3", "--length-scale", "0.05", "--delay-scale", "0.02")


def run(module: str, *arguments: str, timeout_s: float = 100.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def loadtest(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("loadtest", "--host", cluster.url, "--grpc", cluster.grpc_address, *SMALL, *arguments)


def until_idle(cluster: Cluster) -> dict[str, Any]:
    """Status once nothing runs any more; the last one when that does not come."""
    for _ in range(100):
        status: dict[str, Any] = cluster.slosctl_json("status")
        if not status["running_standard"] and not status["running_best_effort"] and not status["queued_best_effort"]:
            break
        time.sleep(0.1)
    return status


def test_every_planned_request_is_answered_over_both_apis_and_scored_on_both_clocks(
    emulated_cluster: Cluster, tmp_path: Path
) -> None:
    files = ("--json", str(tmp_path / "run.json"), "--report", str(tmp_path / "run.html"))
    lengths = ("--length-scale", "0.15", "--slo-scale", "3")
    done = loadtest(emulated_cluster, "--scenario", "all", "--arrivals", "burst", *lengths, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads((tmp_path / "run.json").read_text())
    records = data["records"]
    assert {r["application"] for r in records} == {"chatbot", "coding", "summarization", "tool", "reasoning"}
    assert {r["transport"] for r in records} == {"grpc", "http"}
    for record in records:
        assert record["finish_reason"] == "length", record
        assert record["output_tokens"] == record["planned_output_tokens"] == len(record["token_times_s"])
        assert record["token_times_s"] == sorted(record["token_times_s"])
        assert record["promise"]["ttft_ms"] > 0
        assert record["exact_tokens"] is (record["transport"] == "grpc")
        # The client's interval holds the controller's; a millisecond for two clocks read one after the other.
        assert record["client_ttft_ms"] >= record["outcome"]["ttft_ms"] - 1.0
        assert record["client_attained"] is not None
        tight = record["application"] == "coding" or record["round"] == "inner"
        assert record["promise"]["tpot_ms"] == pytest.approx(150.0 if tight else 300.0)
    planned, sent = (sum(r[name] for r in records) for name in ("planned_prompt_tokens", "prompt_tokens"))
    assert 0.75 < sent / planned < 1.33
    total = data["classes"][-1]
    assert total["sessions_lost"] == 0
    assert total["requests"] == len(records)
    assert total["promised"] >= total["kept"]
    assert data["facts"]["emulated"] is True
    assert "not measurements" in done.stdout
    assert "not measurements" in (tmp_path / "run.html").read_text()


def test_answers_that_never_come_are_lost_and_leave_nothing_behind(emulated_cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    slow = ("--scenario", "chatbot", "--length-scale", "1", "--timeout", "0.2", "--json", str(out))
    done = loadtest(emulated_cluster, *slow)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "got no answer" in done.stderr
    records = json.loads(out.read_text())["records"]
    assert any("DEADLINE_EXCEEDED" in r["error"] for r in records if r["transport"] == "grpc")
    assert any("DEADLINE_EXCEEDED" in r["error"] for r in records if r["transport"] == "http")
    status = until_idle(emulated_cluster)
    assert (status["running_standard"], status["running_best_effort"]) == (0, 0)


def test_a_closed_loop_has_users_who_come_back(emulated_cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    done = loadtest(emulated_cluster, "--closed-users", "3", "--think", "0.1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    data = json.loads(out.read_text())
    assert data["facts"]["loop"] == "closed, 3 users"
    assert len(data["records"]) > 3


LISTENER = """
from collections import Counter
from locust import events as locust_events
from loadtest import events

heard = Counter()
for name in ("promise", "ttft", "tpot", "attainment"):
    getattr(events, name).add_listener(lambda name=name, **_: heard.update([name]))
locust_events.quit.add_listener(lambda **_: print("heard", sorted(heard), heard["attainment"] <= heard["promise"]))
"""


def test_locusts_own_command_runs_users_and_a_burst(emulated_cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "listener.py").write_text(LISTENER)
    files = f"loadtest/locustfile.py,loadtest/burst_shape.py,{tmp_path / 'listener.py'}"
    where = ("--host", emulated_cluster.url, "--grpc", emulated_cluster.grpc_address)
    done = run(
        "locust", "-f", files, "--headless", "-u", "1", *where, *SMALL, "--think", "0.1", "--spike-length", "0.5"
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "updating to 4 users" in said
    for entry in ("TTFT", "TPOT", "chatbot"):
        assert entry in said
    # A user stopped at the end may have heard a promise and not be scored.
    assert "heard ['attainment', 'promise', 'tpot', 'ttft'] True" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--grpc", "127.0.0.1:1"), "is it up"),
        (("--model", "no-such-model"), "--model"),
        (("--scenario", "poetry"), "known: chatbot"),
        (("--data", "no-such-folder"), "no folder no-such-folder"),
    ],
)
def test_a_run_that_cannot_start_says_why(emulated_cluster: Cluster, arguments: tuple[str, ...], message: str) -> None:
    done = loadtest(emulated_cluster, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_modules_that_others_import_do_not_load_locust() -> None:
    code = (
        "import sys, loadtest.load, loadtest.report, loadtest.own_cluster, loadtest.token_times;"
        "sys.exit('locust' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_demo_is_all_of_it_and_takes_its_cluster_down(model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtest.demo", "--engine", "emulated", "--folder", str(tmp_path), *SMALL]
    environment = {**os.environ, "SLOS_MODEL_DIR": str(model_folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "attained" in done.stdout
    assert "the cluster is down again" in done.stdout
    assert (tmp_path / "report.html").is_file()
    assert not (tmp_path / "cluster" / "cluster.json").exists()


def test_a_terminated_demo_takes_its_cluster_down(model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtest.demo", "--engine", "emulated", "--folder", str(tmp_path)]
    environment = {**os.environ, "SLOS_MODEL_DIR": str(model_folder)}
    state = tmp_path / "cluster" / "cluster.json"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if b"sessions (" in line:
                break
        supervisor = json.loads(state.read_text())["pid"]
        demo.terminate()
        demo.stderr.read()
        assert demo.wait(60) == 128 + 15
    assert not state.exists()
    assert process_started(supervisor) is None


def test_a_demo_without_a_model_says_how_to_get_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtest.demo", "--folder", str(tmp_path)]
    environment = {**os.environ, "SLOS_MODEL_DIR": str(tmp_path / "nothing")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 2
    assert "make setup" in done.stderr
