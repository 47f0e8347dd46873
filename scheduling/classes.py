"""The application classes that ship with the project: the paper's Table 1.

Tight prefill is 3 times, loose 5 times the zero-load prefill time; tight decode is 50 ms, loose 100 ms per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from scheduling.types import SloClass

TIGHT_SLOWDOWN, LOOSE_SLOWDOWN = 3.0, 5.0
TIGHT_TPOT_S, LOOSE_TPOT_S = 0.050, 0.100
DEFAULT_CLASS = "chatbot"

_CLASSES = (
    SloClass(
        "chatbot", LOOSE_TPOT_S, ttft_slowdown=LOOSE_SLOWDOWN, description="Conversation: loose prefill, loose decode"
    ),
    SloClass(
        "coding", TIGHT_TPOT_S, ttft_slowdown=LOOSE_SLOWDOWN, description="Code assistant: loose prefill, tight decode"
    ),
    SloClass(
        "summarization", LOOSE_TPOT_S, ttft_slowdown=TIGHT_SLOWDOWN, description="Summary: tight prefill, loose decode"
    ),
    SloClass(
        "tool",
        LOOSE_TPOT_S,
        ttft_slowdown=TIGHT_SLOWDOWN,
        inner_tpot_s=TIGHT_TPOT_S,
        description="Tool calling: tight prefill each round, tight decode inside the loop, loose in the last round",
    ),
    SloClass(
        "reasoning",
        LOOSE_TPOT_S,
        ttft_slowdown=TIGHT_SLOWDOWN,
        thinking_tpot_s=TIGHT_TPOT_S,
        description="Reasoning: tight prefill, tight while thinking, loose for the answer",
    ),
)

APPLICATION_CLASSES: Mapping[str, SloClass] = MappingProxyType({cls.name: cls for cls in _CLASSES})
"""By name, in the order of the paper's table."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "chat": "chatbot",
        "coder": "coding",
        "summarizer": "summarization",
        "summary": "summarization",
        "tool-calling": "tool",
        "tools": "tool",
    }
)


def find(name: str, classes: Mapping[str, SloClass] = APPLICATION_CLASSES) -> SloClass:
    """Class by name or alias; KeyError names the classes there are."""
    for key in (name, ALIASES.get(name, name)):
        if key in classes:
            return classes[key]
    raise KeyError(f"unknown SLO class {name!r}; known: {', '.join(sorted(classes))}")


def scaled(slo_class: SloClass, factor: float) -> SloClass:
    """Return the class with every time multiplied; slowdowns stay, they follow the engine by themselves.

    Keeps the meaning of tight and loose on an engine that is `factor` times slower than the paper's GPU.
    """
    if not factor > 0:
        raise ValueError(f"factor must be positive, not {factor}")

    def times(value: float | None) -> float | None:
        return None if value is None else value * factor

    return replace(
        slo_class,
        tpot_s=slo_class.tpot_s * factor,
        ttft_s=times(slo_class.ttft_s),
        thinking_tpot_s=times(slo_class.thinking_tpot_s),
        inner_tpot_s=times(slo_class.inner_tpot_s),
    )
