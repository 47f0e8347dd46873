"""Every command in the README works as written, against the emulated cluster; its SLO fields are those of the API."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.controller.http.schema import SloFields
from tests.cluster import Cluster, environment
from tests.deploy.compose_files import merged

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    [line.split("  #")[0].strip() for line in block.splitlines() if line.strip() and not line.startswith("#")]
    for block in BLOCKS
]
FLAT = [command for block in COMMANDS for command in block]
RUNNABLE = [[command for command in block if command.split()[0] in {"curl", "slosctl", "python"}] for block in COMMANDS]
PROGRAMS = {"curl", "slosctl", "python", "make", "docker"}


def test_every_command_is_of_a_kind_that_is_checked() -> None:
    assert len(FLAT) > 25
    assert {command.split()[0] for command in FLAT} == PROGRAMS


@pytest.mark.parametrize("command", [command for command in FLAT if command.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    # What the targets do is tested elsewhere; `up` in tests/cli, `test` by the run that this is part of.
    done = subprocess.run(
        ["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", [command for command in FLAT if command.startswith("docker ")])
def test_compose_files_and_profiles_exist(command: str) -> None:
    words = command.split()
    assert words[:2] == ["docker", "compose"]
    given = [words[index + 1] for index, word in enumerate(words) if word == "-f"] or ["docker-compose.yml"]
    services = merged(given, {})["services"]
    profiles = {words[index + 1] for index, word in enumerate(words) if word == "--profile"}
    known = {profile for service in services.values() for profile in service.get("profiles", [])}
    assert not profiles or profiles <= known


@pytest.mark.parametrize(
    "block",
    [block for block in RUNNABLE if block],
    ids=lambda block: block[0][:40],
)
def test_commands_run(block: list[str], emulated_cluster: Cluster, tmp_path: Path) -> None:
    for command in block:
        words = _adapted(shlex.split(command), emulated_cluster)
        done = subprocess.run(
            words,
            cwd=tmp_path,
            env={**environment(emulated_cluster.folder), "PYTHONPATH": os.pathsep.join([str(ROOT)])},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), command


def _adapted(words: list[str], cluster: Cluster) -> list[str]:
    """The same command against this cluster and in this environment."""
    words = [word.replace("localhost:8000", cluster.http_address) for word in words]
    if words[0] == "curl":
        assert shutil.which("curl"), "curl is not installed"
        return ["curl", "--fail", "--max-time", "60", "--noproxy", "*", *words[1:]]
    if words[0] == "slosctl":
        return [sys.executable, "-m", "cli.main", *words[1:]]
    where = ["--host", cluster.url, "--grpc", cluster.grpc_address] if "loadtest" in words else []
    return [sys.executable, *words[1:], *where]


def test_slo_fields_are_those_of_the_api() -> None:
    rows = re.findall(r"^\| (`x-[a-z-]+`)? ?\| (`[a-z_]+`)? ?\|", README, re.MULTILINE)
    fields = {body.strip("`") for _, body in rows if body}
    headers = {header.strip("`") for header, _ in rows if header}
    assert fields == {field.alias or name for name, field in SloFields.model_fields.items()}
    assert headers == {"x-slo-class", "x-slo-ttft-ms", "x-slo-tpot-ms", "x-session-id", "x-tenant"}


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", README)
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []
