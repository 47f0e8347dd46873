"""Options of a load test: the same for `python -m loadtest` and for `locust -f loadtest/locustfile.py`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from loadtest import plan
from loadtest.arrivals import Spike

TRANSPORTS = ("grpc", "http", "both")
DEFAULT_HOST = "http://127.0.0.1:8000"
DEFAULT_GRPC = "127.0.0.1:9000"


@dataclass(frozen=True, slots=True)
class Rate:
    """Sessions per second; of_knee: the value is a multiple of the estimated knee."""

    value: float
    of_knee: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """What to send, and where. Lengths and times as plan.make takes them; slo_scale None means auto."""

    host: str
    grpc: str
    transport: str
    scenario: str
    rate: Rate
    duration_s: float
    arrivals: str
    spike: Spike
    seed: int
    length_scale: float
    delay_scale: float
    slo_scale: float | None
    on_miss: str
    model: str
    tenant: str
    token: str
    tls_ca: str
    data: Path | None
    natural_stop: bool
    timeout_s: float
    think_s: float


def add_to(parser: argparse.ArgumentParser, own_host: bool = True) -> None:
    """Add the options; own_host is False where locust brings --host itself."""
    add = parser.add_argument
    if own_host:
        add("--host", default=DEFAULT_HOST, help="base URL of the HTTP API (default %(default)s)")
    add("--grpc", default=DEFAULT_GRPC, help="host:port of the gRPC API (default %(default)s)")
    add("--transport", choices=TRANSPORTS, default="both", help="both: every other session goes over HTTP")
    add("--scenario", default="mixed", help=f"{', '.join(plan.scenarios())} (default %(default)s)")
    add(
        "--rate",
        type=_rate,
        default=Rate(0.5),
        help="sessions per second, or a multiple such as 0.8x of the rate at"
        " which the engines are about full, by their time models (default 0.5)",
    )
    add("--duration", type=_seconds, default=60.0, help="such as 90, 90s or 2m (default 60s)")
    add("--arrivals", choices=plan.ARRIVALS, default="poisson", help="open loop: when sessions start")
    add("--spike", type=_positive, default=4.0, help="burst: the spike's rate, as a multiple (default %(default)s)")
    add("--spike-start", type=float, default=1 / 3, help="where in the run it begins, 0..1 (default a third)")
    add("--spike-length", type=float, default=1 / 6, help="its share of the run, 0..1 (default a sixth)")
    add("--seed", type=int, default=0, help="same seed, same requests at the same times")
    add("--length-scale", type=_positive, default=1.0, help="multiplies all lengths, for slow engines")
    add("--delay-scale", type=_positive, default=1.0, help="multiplies the time that tools take")
    add("--slo-scale", type=_scale, default=None, help="auto (from the engine's time model, default) or a number")
    add("--on-miss", choices=("best_effort", "reject"), default="best_effort", help="when no promise can be made")
    add("--model", default="", help="model name (default: the only one served)")
    add("--tenant", default="", help="tenant of all requests")
    add("--token", default="", help="API key")
    add("--tls-ca", default="", help="authority of the cluster's certificates, PEM file; use https:// in --host")
    add("--data", type=Path, default=None, help="folder with the public trace files, instead of fitted numbers")
    add("--natural-stop", action="store_true", help="let the model end early instead of at the planned length")
    add("--timeout", type=_seconds, default=300.0, help="longest time for one request (default 300s)")
    add("--think", type=_seconds, default=2.0, help="closed loop: mean pause of a user (default 2s)")


def read(namespace: argparse.Namespace) -> Options:
    """Options from parsed arguments; ValueError says which do not fit together."""
    if namespace.data is not None and not namespace.data.is_dir():
        raise ValueError(f"there is no folder {namespace.data}; give that of the public files, or leave --data out")
    return Options(
        host=(namespace.host or DEFAULT_HOST).rstrip("/"),
        grpc=namespace.grpc,
        transport=namespace.transport,
        scenario=namespace.scenario,
        rate=namespace.rate,
        duration_s=namespace.duration,
        arrivals=namespace.arrivals,
        spike=Spike(namespace.spike, namespace.spike_start, namespace.spike_length),
        seed=namespace.seed,
        length_scale=namespace.length_scale,
        delay_scale=namespace.delay_scale,
        slo_scale=namespace.slo_scale,
        on_miss=namespace.on_miss,
        model=namespace.model,
        tenant=namespace.tenant,
        token=namespace.token,
        tls_ca=namespace.tls_ca,
        data=namespace.data,
        natural_stop=namespace.natural_stop,
        timeout_s=namespace.timeout,
        think_s=namespace.think,
    )


def _positive(value: str) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {value}")
    return number


def _rate(value: str) -> Rate:
    of_knee = value.endswith("x")
    try:
        return Rate(_positive(value.removesuffix("x")), of_knee)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be sessions per second such as 0.5, or 0.8x, not {value!r}") from None


def _seconds(value: str) -> float:
    factor = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(value[-1:], 0.0)
    try:
        return _positive(value[:-1]) * factor if factor else _positive(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a time such as 90, 90s or 2m, not {value!r}") from None


def _scale(value: str) -> float | None:
    try:
        return None if value == "auto" else _positive(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be auto or a positive number, not {value!r}") from None
