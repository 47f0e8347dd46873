"""The state of one run: what is known about the cluster, what is to be sent, and what has come back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from loadtest import calibration, plan, slo_scale
from loadtest.calibration import TokensPerWord
from loadtest.grpc_transport import AdminClient, GrpcTransport
from loadtest.http_transport import HttpTransport
from loadtest.knee import knee_rate_per_s
from loadtest.options import Options
from loadtest.plan import Plan, PlannedSession
from loadtest.records import CallFailed, Record, Transport
from protos.slos.v1 import common_pb2
from scheduling.classes import APPLICATION_CLASSES, scaled
from scheduling.time_model import TimeModel
from scheduling.types import SloClass

_WINDOW_RESERVE_TOKENS = 64
"""Room for the error of planned prompt lengths; our words are not the model's tokens."""

_STOCK = 500
"""Sessions to choose from in a closed loop, and to know the mean session by."""


class LoadError(Exception):
    """The run cannot start; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster under test. emulated: its engines sleep instead of computing."""

    model: str
    window_tokens: int
    policy: str
    replicas: int
    emulated: bool
    hardware: str
    classes: Mapping[str, SloClass]
    time_models: tuple[TimeModel, ...]
    scale: float


@dataclass(slots=True)
class Load:
    """Shared by all users of a run. started_s is time.monotonic() when the run began."""

    options: Options
    target: Target
    plan: Plan
    tokens: Mapping[str, TokensPerWord]
    transports: tuple[Transport, ...]
    records: list[Record] = field(default_factory=list)
    started_s: float = 0.0
    in_flight: int = 0
    dispatching: int = 0
    _cycles: dict[str, Iterator[PlannedSession]] = field(default_factory=dict)

    def start(self) -> None:
        """Begin the run now."""
        self.records.clear()
        self.started_s = time.monotonic()
        self.dispatching = len(self.plan.applications)

    def now_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started_s

    @property
    def done(self) -> bool:
        """Every planned session has been started and has ended."""
        return self.dispatching == 0 and self.in_flight == 0

    def sessions(self, application: str) -> list[PlannedSession]:
        """Sessions of one application, by start."""
        return [s for s in self.plan.sessions if s.application == application]

    def next_session(self, application: str) -> PlannedSession:
        """Return any next session of the application, for users who come back after each (closed loop)."""
        if application not in self._cycles:
            self._cycles[application] = itertools.cycle(self.sessions(application))
        return next(self._cycles[application])

    def transport(self, session: int) -> Transport:
        """Return the API that this session uses."""
        return self.transports[session % len(self.transports)]

    def close(self) -> None:
        """Close all connections."""
        for transport in self.transports:
            transport.close()


def prepare(options: Options, closed: bool = False) -> Load:
    """Ask the cluster what it is, scale the SLOs, draw the plan, measure the text; LoadError when that fails.

    closed: the plan is only a stock of sessions for users who come back, whatever the rate.
    """
    target = _target(options)
    try:
        drawn = _draw(options, target, closed)
    except ValueError as error:
        raise LoadError(str(error)) from error
    missing = [a for a in drawn.applications if a not in target.classes]
    if missing:
        raise LoadError(f"the cluster has no SLO class {missing[0]!r}; `slosctl slo ls` shows what it has")
    transports = _transports(options)
    try:
        tokens = calibration.measure(transports[0], target.model, drawn.applications, drawn.applications[0])
    except (CallFailed, ValueError) as error:
        for transport in transports:
            transport.close()
        raise LoadError(f"the cluster does not serve {target.model}: {error}") from error
    return Load(options, target, drawn, tokens, transports)


def _draw(options: Options, target: Target, closed: bool) -> Plan:
    def at(rate_per_s: float, duration_s: float, arrivals: str) -> Plan:
        return plan.make(
            options.scenario,
            rate_per_s=rate_per_s,
            duration_s=duration_s,
            arrivals=arrivals,
            spike=options.spike,
            seed=options.seed,
            window_tokens=target.window_tokens - _WINDOW_RESERVE_TOKENS,
            length_scale=options.length_scale,
            delay_scale=options.delay_scale,
            data=options.data,
        )

    if closed:
        return at(_STOCK / options.duration_s, options.duration_s, "poisson")
    rate_per_s = options.rate.value
    if options.rate.of_knee:
        rate_per_s *= knee_rate_per_s(target.time_models, at(_STOCK / 100.0, 100.0, "poisson").sessions)
    return at(rate_per_s, options.duration_s, options.arrivals)


def _transports(options: Options) -> tuple[Transport, ...]:
    made: list[Transport] = []
    if options.transport in ("grpc", "both"):
        made.append(GrpcTransport(options.grpc, options.token, options.tls_ca))
    if options.transport in ("http", "both"):
        made.append(HttpTransport(options.host, options.token, options.tls_ca, options.timeout_s))
    return tuple(made)


def _target(options: Options) -> Target:
    admin = AdminClient(options.grpc, options.token, options.tls_ca)
    try:
        status, models, stored = admin.status(), admin.models(), admin.classes()
    except CallFailed as error:
        raise LoadError(
            f"the cluster at {options.grpc} does not answer ({error}); is it up (`slosctl status`), is --grpc right?"
        ) from error
    finally:
        admin.close()
    names = [m.name for m in models if m.ready_replicas]
    if not names:
        raise LoadError("the cluster has no ready replica; `slosctl replicas ls` says why")
    name = options.model or names[0]
    if name not in names or (len(names) > 1 and not options.model):
        raise LoadError(f"choose one of the models that are served with --model: {', '.join(names)}")
    replicas = [r for r in status.replicas if r.model == name]
    models_of_time = tuple(TimeModel.from_json(r.time_model_json) for r in replicas if r.time_model_json)
    return Target(
        model=name,
        window_tokens=next(m.max_model_len for m in models if m.name == name),
        policy=status.policy,
        replicas=len(replicas),
        emulated=any(r.emulated for r in replicas),
        hardware=", ".join(sorted({r.hardware for r in replicas})),
        classes={c.name: _slo_class(c) for c in stored} or dict(APPLICATION_CLASSES),
        time_models=models_of_time,
        scale=_scale(options, models_of_time),
    )


def _scale(options: Options, models: tuple[TimeModel, ...]) -> float:
    if options.slo_scale is not None:
        return options.slo_scale
    try:
        return round(slo_scale.scale_for(models), 2)
    except ValueError as error:
        raise LoadError(str(error)) from error


def _slo_class(stored: common_pb2.SloClass) -> SloClass:
    """Return the planner's form of a class; 0 on the wire is None."""

    def seconds(value_ms: float) -> float | None:
        return value_ms / 1e3 if value_ms else None

    return SloClass(
        name=stored.name,
        tpot_s=stored.tpot_ms / 1e3,
        ttft_s=seconds(stored.ttft_ms),
        ttft_slowdown=stored.ttft_slowdown or None,
        thinking_tpot_s=seconds(stored.thinking_tpot_ms),
        inner_tpot_s=seconds(stored.inner_tpot_ms),
    )


def tpots_ms(target: Target, application: str, round_: str) -> tuple[float | None, float | None]:
    """(TPOT, thinking TPOT) to ask for, milliseconds; None leaves them to the class, which is right at scale 1."""
    if target.scale == 1.0:
        return None, None
    slo_class = scaled(target.classes[application], target.scale)
    inner = round_ == "inner" and slo_class.inner_tpot_s is not None
    tpot_s = slo_class.inner_tpot_s if inner else slo_class.tpot_s
    thinking_s = slo_class.thinking_tpot_s
    return (None if tpot_s is None else tpot_s * 1e3), (None if thinking_s is None else thinking_s * 1e3)
