"""`make demo`: a cluster of its own on the real model, a mixed burst, table and report, and all down again.

Exit status: 0 when every session was answered, 1 when one was lost, 2 when the cluster did not start.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from loadtest.own_cluster import ClusterFailed, OwnCluster, own_cluster

# A burst that no engine can promise everybody: a base of 0.6 of what the engine carries by its own time model, and four
# times that in the middle. The lengths suit a small model on a slow machine.
_LOAD = (
    *("--scenario", "all", "--arrivals", "burst", "--rate", "0.6x", "--spike", "4", "--duration", "45"),
    *("--length-scale", "0.1", "--delay-scale", "0.2", "--transport", "both", "--timeout", "120"),
)
_LOAD_TIMEOUT_S = 600.0


def main(arguments: list[str] | None = None) -> int:
    """Bring up, send, report, take down."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.demo",
        description="A cluster of its own, a mixed burst, the table and the report.",
        epilog="Further options go to the load test, such as --rate 0.8x --seed 3; see `python -m loadtest --help`.",
    )
    parser.add_argument("--engine", choices=("vllm", "emulated"), default="vllm")
    parser.add_argument("--policy", default="slos")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(".slos/demo"), help="state, logs, report (%(default)s)")
    given, further = parser.parse_known_args(arguments)
    up = ["--engine", given.engine, "--policy", given.policy, "--replicas", str(given.replicas)]
    # A demo is short; the time model of a quick profile is good enough for it, and kept for the next one.
    up.append("--worker-option=--profile-quick")
    began_s = time.monotonic()
    try:
        with own_cluster(given.folder / "cluster", up) as cluster:
            code = _send(cluster, given.folder, further)
    except ClusterFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the cluster is down", file=sys.stderr)
        return 130
    print(f"demo: {time.monotonic() - began_s:.0f} s in all; the cluster is down again")
    return code


def _send(cluster: OwnCluster, folder: Path, further: list[str]) -> int:
    """Run the load test in a process of its own: locust makes the standard library cooperative where it is loaded."""
    where = ["--host", cluster.url, "--grpc", cluster.grpc_address]
    out = ["--report", str(folder / "report.html"), "--json", str(folder / "report.json")]
    try:
        return subprocess.run(
            [sys.executable, "-m", "loadtest", *where, *_LOAD, *out, *further], timeout=_LOAD_TIMEOUT_S, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"error: the load test did not end within {_LOAD_TIMEOUT_S:.0f} s", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
