"""The parts of slosctl that need no cluster."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import state
from cli.cluster import plan, redis_probe
from cli.commands.explain import lines_of
from cli.errors import MEANING, CliError, Exit
from cli.main import cli
from cli.output import enum_word, to_dict
from cli.plan_plot import draw
from cli.rpc import Target
from protos.slos.v1 import admin_pb2, common_pb2
from services.common.embedded_redis import EmbeddedRedis


def slosctl(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLOS_")}
    environment["SLOS_STATE_DIR"] = str(folder)
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


@given(engines=st.integers(1, 20), cores=st.integers(1, 40))
def test_cores_are_shared_only_when_they_must_be(engines: int, cores: int) -> None:
    split = plan.cores_for(engines, list(range(cores)))
    assert len(split) == engines
    assert all(split)
    used = [core for part in split for core in part]
    assert set(used) <= set(range(cores))
    if engines <= cores:
        assert len(used) == len(set(used))
    if engines < cores:
        assert 0 not in used


def test_enum_words() -> None:
    assert enum_word(common_pb2.Admission.DESCRIPTOR, common_pb2.ADMISSION_BEST_EFFORT) == "best_effort"
    assert enum_word(common_pb2.FinishReason.DESCRIPTOR, common_pb2.FINISH_REASON_TOOL_CALLS) == "tool_calls"
    assert enum_word(common_pb2.OnMiss.DESCRIPTOR, common_pb2.ON_MISS_UNSPECIFIED) == ""
    assert enum_word(common_pb2.Round.DESCRIPTOR, 99) == "99"


def test_messages_become_plain_data() -> None:
    replica = admin_pb2.Replica(replica="w", kv_capacity_tokens=2**40, step_ms=1.5)
    data = to_dict(admin_pb2.ListReplicasResponse(replicas=[replica]))
    assert json.loads(json.dumps(data)) == data
    assert data["replicas"][0]["kv_capacity_tokens"] == 2**40
    assert data["replicas"][0]["state"] == ""
    assert to_dict(common_pb2.SloSpec(tpot_ms=0))["tpot_ms"] == 0
    assert to_dict(common_pb2.SloSpec())["tpot_ms"] is None
    assert to_dict(common_pb2.Sampling(logit_bias={7: -1.0}))["logit_bias"] == {"7": -1.0}
    assert to_dict(admin_pb2.RequestInfo())["outcome"] is None


def test_plans_are_laid_out() -> None:
    lines = lines_of({"free_blocks": 3, "plan": {"budget": [1.0, 2.5], "labels": [{"value": 1}], "none": []}})
    assert lines == [
        "  free blocks: 3",
        "  plan:",
        "    budget: 1, 2.5",
        "    labels:",
        "      [0]:",
        "        value: 1",
        "    none: ",
    ]
    assert lines_of([1] * 20)[-1].strip() == "... 12 more (--json shows all)"


def test_plot_is_a_picture(tmp_path: Path) -> None:
    lines = {"time_s": [0.0, 0.1, 0.2], "budget_tokens": [0, 60, 120], "demand_tokens": [0, 10, 90]}
    draw({"plan": {"lines": lines}}, "request", tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CliError, match="no lines"):
        draw({"plan": {}}, "request", tmp_path / "none.png")
    with pytest.raises(CliError, match="Cannot write"):
        draw({"plan": {"lines": lines}}, "request", tmp_path / "missing" / "plan.png")


def test_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        done = slosctl("up", "--model", str(tmp_path / "model"), "--port", str(port), folder=tmp_path / "state")
    assert done.returncode == Exit.START_FAILED
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr


def test_up_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    done = slosctl("up", "--model", str(tmp_path), folder=tmp_path / "state")
    assert done.returncode == Exit.USAGE
    assert "config.json" in done.stderr


def test_nothing_runs(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        for command in (["status"], ["replicas", "ls"], ["slo", "ls"], ["chat", "hi"], ["top", "--count", "1"]):
            done = slosctl("--address", address, *command, folder=tmp_path)
            assert done.returncode == Exit.UNREACHABLE, done.stderr
            assert address in done.stderr
            assert "slosctl up" in done.stderr
            assert "Traceback" not in done.stderr
    done = slosctl("down", folder=tmp_path)
    assert done.returncode == 0
    assert "no cluster" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["bench", "nothing"], Exit.NOT_FOUND, "nothing"),
        (["slo", "set"], Exit.USAGE, "NAME"),
        (["slo", "set", "x", "--tpot-ms", "-3"], Exit.USAGE, "tpot-ms"),
        (["slo", "set", "x", "--ttft-ms", "3", "--ttft-slowdown", "3"], Exit.USAGE, "not both"),
        (["up", "--policy", "luck"], Exit.USAGE, "luck"),
        (["replicas", "set-role", "w", "cook"], Exit.USAGE, "cook"),
        (["chat", "--json"], Exit.UNREACHABLE, "localhost:1"),
        (["up", "--json"], Exit.USAGE, "--detach"),
        (["--tls-ca", "/missing.pem", "status"], Exit.USAGE, "/missing.pem"),
        (["frobnicate"], Exit.USAGE, "frobnicate"),
    ],
)
def test_mistakes_are_named(arguments: list[str], code: Exit, word: str, tmp_path: Path) -> None:
    done = slosctl("--address", "localhost:1", *arguments, folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def leaves(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def test_every_command_has_json_for_programs() -> None:
    commands = dict(leaves(cli))
    assert {"replicas drain", "slo set", "requests cancel", "explain", "top"} <= commands.keys()
    without = {
        name
        for name, command in commands.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    # These pass their arguments on; the programs behind them have --json themselves.
    assert without == {"bench", "capacity", "simulate"}


def test_what_needs_no_planner_does_not_load_it() -> None:
    code = (
        "import sys; from cli.main import cli; cli(['requests', 'ls', '--help'], standalone_mode=False);"
        "sys.exit(any(name in sys.modules for name in ('numba', 'numpy', 'scheduling')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--running" in done.stdout


def test_help_lists_exit_codes_and_commands(tmp_path: Path) -> None:
    text = slosctl("--help", folder=tmp_path).stdout
    for code in Exit:
        assert f" {code.value}  {MEANING[code]}" in text
    for command in (
        "up",
        "down",
        "status",
        "replicas",
        "slo",
        "requests",
        "explain",
        "chat",
        "top",
        "profile",
        "bench",
    ):
        assert f"  {command} " in text


def test_state_survives_only_its_process(tmp_path: Path) -> None:
    program = (
        "import os, sys; from cli import state\n"
        "started = state.process_started(os.getpid()) + int(sys.argv[1])\n"
        "state.write(state.ClusterState(pid=os.getpid(), pid_started=started,"
        " http_address='h', grpc_address='g', redis_url='r', engine='e', replicas=1, policy='p', started_unix_s=0))\n"
        "print(state.running() is not None, state.load() is not None)\n"
    )
    environment = {**os.environ, "SLOS_STATE_DIR": str(tmp_path)}
    for shift, expected in (("0", "True True"), ("1", "False True")):
        done = subprocess.run(
            [sys.executable, "-c", program, shift], capture_output=True, text=True, check=True, env=environment
        )
        assert done.stdout.split() == expected.split()


def test_broken_state_is_said(tmp_path: Path) -> None:
    (tmp_path / state.FILE).write_text("{")
    done = slosctl("status", folder=tmp_path)
    assert done.returncode == Exit.FAILED
    assert state.FILE in done.stderr


def test_left_over_redis_is_stopped(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    try:
        port = int((tmp_path / "redis" / "redis.address").read_text())
        assert redis_probe.answers(port)
        redis_probe.stop_left_over(tmp_path / "elsewhere")
        assert redis_probe.answers(port)
        redis_probe.stop_left_over(tmp_path / "redis")
        assert not redis_probe.answers(port)
    finally:
        server.stop()


def test_address_given_wins() -> None:
    assert Target(address="there:1").resolved_address() == "there:1"
