"""Runs a load test inside this process and hands back what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gevent
from locust.env import Environment

from loadtest import events, summary
from loadtest.load import Load
from loadtest.shapes import BurstShape, PlanShape
from loadtest.summary import ClassSummary
from loadtest.users import USERS

_PROGRESS_PERIOD_S = 5.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to; rows as summary makes them, facts for reports."""

    rows: list[ClassSummary]
    facts: dict[str, Any]
    lost: int


def run(load: Load, closed_users: int = 0, progress: bool = True) -> Result:
    """Send the plan, or let `closed_users` users come back for its sessions; returns when all answers are in."""
    options = load.options
    shape = BurstShape(load, closed_users) if closed_users else PlanShape(load)
    names = set(load.plan.applications)
    environment = Environment(
        user_classes=[user for user in USERS if user.application in names],
        shape_class=shape,
        host=options.host,
        stop_timeout=None,
        catch_exceptions=False,
    )
    attach(environment, load, closed=bool(closed_users))
    begun = time.time()
    environment.create_local_runner()
    reporter = gevent.spawn(_report, load) if progress else None
    load.start()
    try:
        environment.runner.start_shape()
        environment.runner.shape_greenlet.join()
    except KeyboardInterrupt:
        print("interrupted; reporting what has come back so far", file=sys.stderr)
    finally:
        wall_s = load.now_s()
        environment.runner.quit()
        if reporter is not None:
            reporter.kill()
        detach(environment)
    rows = summary.of_records(load.records) if closed_users else summary.of_plan(load.records, load.plan)
    return Result(rows, facts(load, begun, wall_s, closed_users), 0 if closed_users else summary.lost(rows))


def attach(environment: Environment, load: Load, closed: bool) -> None:
    """Give users their run, and let our events appear in locust's own statistics."""
    environment.load = load
    environment.closed_loop = closed

    def entry(kind: str) -> Callable[..., None]:
        def listener(application: str, ms: float, **_: Any) -> None:
            environment.events.request.fire(
                request_type=kind, name=application, response_time=ms, response_length=0, exception=None, context={}
            )

        return listener

    def ended(record: Any, **_: Any) -> None:
        failure = RuntimeError(record.error) if record.error and not record.refused else None
        environment.events.request.fire(
            request_type=record.transport,
            name=record.application,
            response_time=(record.token_times_s[-1] if record.token_times_s else 0.0) * 1e3,
            response_length=record.output_tokens,
            exception=failure,
            context={},
        )

    environment.slos_listeners = [
        (events.ttft, entry("TTFT")),
        (events.tpot, entry("TPOT")),
        (events.attainment, ended),
    ]
    for hook, listener in environment.slos_listeners:
        hook.add_listener(listener)


def detach(environment: Environment) -> None:
    """Undo attach, so that a second run in this process starts clean."""
    for hook, listener in environment.slos_listeners:
        hook.remove_listener(listener)


def facts(load: Load, begun_at: float, wall_s: float, closed_users: int) -> dict[str, Any]:
    """Say what was run, for people and programs that read the report later."""
    options, target = load.options, load.target
    finished = [r for r in load.records if r.finished]
    return {
        "scenario": load.plan.scenario,
        "model": target.model,
        "policy": target.policy,
        "hardware": target.hardware,
        "emulated": target.emulated,
        "replicas": target.replicas,
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun_at)),
        "wall_s": round(wall_s, 2),
        "loop": f"closed, {closed_users} users" if closed_users else f"open, {options.arrivals}",
        "rate_per_s": None if closed_users else round(load.plan.rate_per_s, 4),
        "duration_s": options.duration_s,
        "spike": options.spike.factor if closed_users or options.arrivals == "burst" else None,
        "seed": options.seed,
        "transport": options.transport,
        "length_scale": options.length_scale,
        "delay_scale": options.delay_scale,
        "slo_scale": target.scale,
        "slo_scale_origin": "time model of the engine" if options.slo_scale is None else "given",
        "lengths_from": "public files" if options.data else "distributions fitted to public traces",
        "requests_finished": len(finished),
        "output_tokens_per_s": round(sum(r.output_tokens for r in finished) / wall_s, 2) if wall_s > 0 else None,
        "latest_send_ms": round(max((r.sent_s - r.due_s for r in load.records), default=0.0) * 1e3, 1),
    }


def _report(load: Load) -> None:
    while True:
        gevent.sleep(_PROGRESS_PERIOD_S)
        ended = len(load.records)
        attained = sum(1 for r in load.records if r.outcome is not None and r.outcome.attained)
        print(
            f"{load.now_s():6.0f} s  ended {ended}  attained {attained}  sessions running {load.in_flight}",
            file=sys.stderr,
            flush=True,
        )
