"""A checkout of its own in which the setup script has installed the controller, for all tests of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("benchmarks", "cli", "deploy", "engine", "loadtest", "protos", "scheduling", "services", "simulation")


@dataclass(frozen=True, slots=True)
class Installed:
    """A checkout with its environment, and what the setup said."""

    checkout: Path
    said: str

    @property
    def python(self) -> Path:
        """Interpreter of the environment."""
        return self.checkout / ".venv" / "bin" / "python"


def copy_of_the_sources(folder: Path) -> Path:
    """What a clone would hold, as far as setup needs it."""
    copy = folder / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    return copy


def install(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the setup script of a checkout."""
    return subprocess.run(
        [checkout / "deploy" / "install.sh", *arguments],
        cwd=checkout.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="package")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The controller's set and nothing else."""
    checkout = copy_of_the_sources(tmp_path_factory.mktemp("controller"))
    done = install(checkout, "--set", "controller", "--packages-only")
    assert done.returncode == 0, done.stdout + done.stderr
    return Installed(checkout, done.stdout + done.stderr)
