"""`python -m loadtest`: one headless run against a cluster that is up, with a table and reports at the end.

Exit status: 0 all answered, 1 something was lost, 2 wrong use or no cluster.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# locust makes the standard library cooperative when it is imported, which must come before anything opens a socket.
import locust  # noqa: F401

from loadtest import options, report
from loadtest.load import Load, LoadError, prepare
from loadtest.run import run


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__.splitlines()[0])
    options.add_to(parser)
    parser.add_argument("--closed-users", type=int, default=0, help="closed loop with this many users (0: open loop)")
    parser.add_argument("--report", type=Path, help="write an HTML report to this file")
    parser.add_argument("--json", type=Path, help="write facts, table and all requests to this file")
    parser.add_argument("--quiet", action="store_true", help="no progress lines")
    parsed = parser.parse_args(arguments)
    try:
        load = prepare(options.read(parsed), closed=parsed.closed_users > 0)
    except (LoadError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        if not parsed.quiet:
            print(_announcement(load, parsed.closed_users), file=sys.stderr)
        result = run(load, parsed.closed_users, progress=not parsed.quiet)
    finally:
        load.close()
    emulated = "  (emulated engines: not measurements)" if result.facts["emulated"] else ""
    report.print_table(result.rows, f"{load.plan.scenario}, policy {load.target.policy}{emulated}")
    if parsed.json:
        report.write_json(parsed.json, result.facts, result.rows, load.records)
    if parsed.report:
        report.write_html(parsed.report, result.facts, result.rows, load.records)
        print(f"report: {parsed.report}")
    if result.lost:
        print(f"error: {result.lost} sessions got no answer", file=sys.stderr)
        for text in sorted({r.error for r in load.records if r.error and not r.refused})[:5]:
            print(f"  {text}", file=sys.stderr)
        return 1
    return 0


def _announcement(load: Load, closed_users: int) -> str:
    planned = (
        f"{closed_users} users"
        if closed_users
        else f"{load.plan.requests} requests in {len(load.plan.sessions)} sessions"
    )
    if not closed_users:
        planned += f" ({load.plan.rate_per_s:.2f}/s)"
    return f"{planned} over {load.plan.duration_s:g} s; TPOT SLOs scaled by {load.target.scale:g}"


if __name__ == "__main__":
    sys.exit(main())
