"""From an SLO class and a request's own SLO fields to the SLO in force (the API's SLO fields, resolved)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scheduling.types import Round, Slo, SloClass

MAX_SLO_S = 24 * 3600.0


class SloError(ValueError):
    """An SLO field that makes no sense; field is its name in the API."""

    def __init__(self, field: str, reason: str) -> None:
        """Keep the field's name beside the text."""
        super().__init__(f"slo.{field}: {reason}")
        self.field = field


@dataclass(frozen=True, slots=True)
class SloFields:
    """The SLO fields of a request as the client gave them, milliseconds; None where it gave none."""

    ttft_ms: float | None = None
    ttft_slowdown: float | None = None
    tpot_ms: float | None = None
    thinking_tpot_ms: float | None = None
    round: Round = Round.NONE


def resolve(
    slo_class: SloClass,
    fields: SloFields,
    zero_load_prefill_s: float,
    *,
    has_tools: bool = False,
    thinks: bool = False,
) -> Slo:
    """Return the SLO in force; SloError names the field that is wrong.

    A field the client gave wins over its class. A request with tools and no declared round is an inner round (tight).
    thinks: the prompt leads the model into a thinking stage; without it the class's thinking TPOT is not used, an
    explicit thinking_tpot_ms always is.
    """
    if fields.ttft_ms is not None and fields.ttft_slowdown is not None:
        raise SloError("ttft_ms", "excludes ttft_slowdown; give one of them")
    ttft_s = _seconds("ttft_ms", fields.ttft_ms)
    if ttft_s is None and fields.ttft_slowdown is not None:
        slowdown = _positive("ttft_slowdown", fields.ttft_slowdown)
        if slowdown < 1.0:
            raise SloError("ttft_slowdown", f"{slowdown:g} is below 1: no prefill is faster than on an idle engine")
        ttft_s = slowdown * zero_load_prefill_s
    if ttft_s is None:
        ttft_s = class_ttft_s(slo_class, zero_load_prefill_s)
    tpot_s = _seconds("tpot_ms", fields.tpot_ms)
    if tpot_s is None:
        inner = fields.round is Round.INNER or (fields.round is Round.NONE and has_tools)
        tpot_s = slo_class.inner_tpot_s if inner and slo_class.inner_tpot_s is not None else slo_class.tpot_s
    thinking_s = _seconds("thinking_tpot_ms", fields.thinking_tpot_ms)
    if thinking_s is None and thinks:
        thinking_s = slo_class.thinking_tpot_s
    return Slo(min(ttft_s, MAX_SLO_S), tpot_s, thinking_s)


def class_ttft_s(slo_class: SloClass, zero_load_prefill_s: float) -> float:
    """TTFT of a class for a prompt with this zero-load prefill time; ValueError when the class has none."""
    if slo_class.ttft_s is not None:
        return slo_class.ttft_s
    if slo_class.ttft_slowdown is not None:
        return slo_class.ttft_slowdown * zero_load_prefill_s
    raise ValueError(f"SLO class {slo_class.name!r} has neither ttft_s nor ttft_slowdown")


def check_class(slo_class: SloClass) -> None:
    """SloError names what is wrong with a class that an operator wants to store."""
    if not slo_class.name:
        raise SloError("name", "a class needs a name")
    if (slo_class.ttft_s is None) == (slo_class.ttft_slowdown is None):
        raise SloError("ttft_ms", "a class needs exactly one of ttft_ms and ttft_slowdown")
    times = ("ttft_s", "ttft_slowdown", "tpot_s", "thinking_tpot_s", "inner_tpot_s", "value")
    for name in times:
        value: float | None = getattr(slo_class, name)
        if value is not None:
            _positive(name.replace("_s", "_ms") if name.endswith("_s") else name, value)
    if slo_class.ttft_slowdown is not None and slo_class.ttft_slowdown < 1.0:
        raise SloError("ttft_slowdown", "must be at least 1: no prefill is faster than on an idle engine")
    for name in ("length_quantile", "precision_target"):
        share: float = getattr(slo_class, name)
        if not 0.0 < share < 1.0:
            raise SloError(name, f"must lie between 0 and 1, not {share:g}")


def _seconds(field: str, milliseconds: float | None) -> float | None:
    if milliseconds is None:
        return None
    seconds = _positive(field, milliseconds) / 1000.0
    if seconds > MAX_SLO_S:
        raise SloError(field, f"{milliseconds:g} ms is more than a day")
    return seconds


def _positive(field: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise SloError(field, f"must be a positive number, not {value:g}")
    return value
