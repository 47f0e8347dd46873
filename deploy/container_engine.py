"""What containers this machine can run: Docker with compose, or podman with podman-compose, and base images."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

PYTHON_IMAGE = "docker.io/library/python:3.11-slim-bookworm"
LOCAL_IMAGE = "localhost/slos-serve-base:bookworm"
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PROBE_TIMEOUT_S = 90.0


class CannotRun(Exception):
    """This machine cannot run containers; the text says why and what to install."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How to call it. compose: command line of the compose tool; runtime: podman's, empty for docker."""

    program: str
    compose: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    runtime: str = ""

    def call(self, *arguments: str, timeout_s: float = 600.0, quiet: bool = False) -> subprocess.CompletedProcess[str]:
        """Run one command of the engine itself; quiet keeps its output for the caller."""
        return subprocess.run(
            [self.program, *arguments],
            env={**os.environ, **self.environment},
            capture_output=quiet,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def find(work: Path) -> Engine:
    """Find an engine that runs; CannotRun says what is missing. work: folder for settings."""
    reasons = []
    if shutil.which("docker"):
        if not _works("docker", "info"):
            reasons.append("docker is installed, but no Docker daemon answers")
        elif not _works("docker", "compose", "version"):
            reasons.append("docker runs, but its compose plugin is not installed")
        else:
            return Engine("docker", ("docker", "compose"))
    else:
        reasons.append("docker is not installed")
    if not shutil.which("podman"):
        reasons.append("podman is not installed (Debian: apt-get install podman runc)")
    elif importlib.util.find_spec("podman_compose") is None:
        reasons.append("podman is there, but podman-compose is not (it is in the extra dev)")
    else:
        return _podman(work)
    raise CannotRun("; ".join(reasons))


def base_image(engine: Engine, work: Path) -> tuple[str, bool]:
    """Name of an image with Python 3.11 and whether registries can be reached; CannotRun when none can be had."""
    if _has(engine, PYTHON_IMAGE) or engine.call("pull", "-q", PYTHON_IMAGE, timeout_s=PROBE_TIMEOUT_S).returncode == 0:
        return PYTHON_IMAGE, True
    if _has(engine, LOCAL_IMAGE):
        return LOCAL_IMAGE, False
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        raise CannotRun(f"{PYTHON_IMAGE} cannot be pulled, and making a base image needs root and debootstrap")
    print("no registry can be reached: making a base image with debootstrap", flush=True)
    root = work / "root"
    include = "--include=python3,python3-venv,ca-certificates"
    made = subprocess.run(["debootstrap", "--variant=minbase", include, "bookworm", str(root)], check=False)
    if made.returncode != 0:
        raise CannotRun("debootstrap failed; its lines above say why")
    # What this machine trusts, its containers trust.
    shutil.copy(CA_BUNDLE, root / CA_BUNDLE.relative_to("/"))
    archive = work / "root.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    shutil.rmtree(root)
    imported = engine.call("import", str(archive), LOCAL_IMAGE)
    archive.unlink()
    if imported.returncode != 0:
        raise CannotRun("the base image could not be imported; the lines above say why")
    return LOCAL_IMAGE, False


def run_with_limits(engine: Engine, image: str, work: Path) -> Engine:
    """Find resource limits that containers may set on this machine; CannotRun when none let one start."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if engine.program == "docker":
        return engine
    problem = ""
    for files, processes in ((min(65536, hard), 4096), (1024, 1024)):
        write_settings(work, engine.runtime, files, processes)
        done = engine.call("run", "--rm", image, "python3", "-V", quiet=True)
        if done.returncode == 0:
            return engine
        problem = done.stderr.strip()[-300:]
    raise CannotRun(f"podman cannot run a container here: {problem}")


def write_settings(work: Path, runtime: str, files: int, processes: int) -> Path:
    """Write podman's settings: a runtime that is there, and limits for open files and processes."""
    settings = work / "containers.conf"
    settings.write_text(
        f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]\n'
        f'[engine]\nruntime = "{runtime}"\n'
    )
    return settings


def _podman(work: Path) -> Engine:
    runtime = next((name for name in ("runc", "crun") if shutil.which(name)), None)
    if runtime is None:
        raise CannotRun("podman is installed without a runtime (Debian: apt-get install runc)")
    settings = write_settings(work, runtime, 1024, 1024)
    compose = (sys.executable, "-m", "podman_compose", "--in-pod", "false")
    return Engine("podman", compose, {"CONTAINERS_CONF": str(settings)}, runtime)


def _works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _has(engine: Engine, image: str) -> bool:
    return engine.call("image", "inspect", image, quiet=True).returncode == 0
