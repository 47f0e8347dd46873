"""Every benchmark after the other, on a machine that does nothing else; then docs/benchmarks.md with the numbers."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common, render

NAMES = (
    *("planner", "simulator", "step-scheduler", "overhead", "slo", "policies", "features", "validity"),
    *("kv-transfer", "disaggregated"),
)
QUICK_RESULTS = Path(".slos/bench")
_TIMEOUT_S = 7200.0


def run(name: str, quick: bool) -> dict[str, Any]:
    """Run one benchmark in a process of its own; RuntimeError when it fails."""
    with tempfile.TemporaryDirectory(prefix="slos-bench-") as folder:
        # By a file: libraries write to standard output too, and hours of measurements must not be lost for a line.
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", f"benchmarks.{name.replace('-', '_')}", "--out", str(out)]
        done = subprocess.run(
            [*command, "--quick"] if quick else command, stdout=sys.stderr, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"benchmark {name} exited with {done.returncode}; its lines above say why")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def main(arguments: list[str] | None = None) -> int:
    """Run, store, render; a failed benchmark does not keep the others from running."""
    parser = argparse.ArgumentParser(prog="slosctl bench all", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"small runs; results go to {QUICK_RESULTS}, not to docs/")
    parser.add_argument("--only", default=",".join(NAMES), help="names separated by commas (default %(default)s)")
    given = parser.parse_args(arguments)
    folder = QUICK_RESULTS if given.quick else render.RESULTS
    failed = []
    for name in given.only.split(","):
        common.say(f"== {name}")
        begin = time.monotonic()
        try:
            whole = run(name, given.quick)
        except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
            print(f"error: {error}", file=sys.stderr)
            failed.append(name)
            continue
        common.write(folder / f"{name}.json", whole)
        common.say(f"== {name}: {time.monotonic() - begin:.0f} s, {folder / name}.json")
    if not given.quick:
        render.DOCUMENT.write_text(render.render(render.DOCUMENT.read_text(), render.stored()))
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
