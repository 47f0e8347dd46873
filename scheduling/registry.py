"""Policies by name: a name stands for a module with a function `policy`, imported when first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, cast

from scheduling.policy import AdmissionPolicy, BatchPolicy, Policy, RoutingPolicy
from scheduling.routing import get as routing_get

DEFAULT_POLICY = "slos"

POLICIES: Mapping[str, str] = MappingProxyType(
    {
        "slos": "scheduling.policies.slos",
        "dp": "scheduling.policies.dp",
        "edf-exact": "scheduling.policies.edf_exact",
        "edf-pb": "scheduling.policies.edf_pb",
        "vllm": "scheduling.policies.vllm_2024",
        "vllm-v1": "scheduling.policies.vllm_v1",
        "sarathi": "scheduling.policies.sarathi",
        "distserve": "scheduling.policies.distserve",
        "qoserve": "scheduling.policies.qoserve",
    }
)
"""Name -> module. A policy module defines `policy() -> Policy`; its parameters, if any, all have defaults."""


def names() -> tuple[str, ...]:
    """Names of all policies."""
    return tuple(POLICIES)


def get(
    name: str = DEFAULT_POLICY,
    *,
    routing: str | None = None,
    explains: bool = True,
    explain_lines: bool = False,
    **options: object,
) -> Policy:
    """Policy by name; ValueError names the ones there are.

    routing: replace the bundle's routing by the one of this name (scheduling.routing). explains: False for whoever
    reads only who is accepted: decisions need not say why. explain_lines: they carry budget and demand lines, where the
    admission policy can draw them. options go to the module's `policy` function; TypeError when it does not know one.
    """
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; known: {', '.join(POLICIES)}")
    policy: Policy = importlib.import_module(POLICIES[name]).policy(**options)
    if explain_lines or not explains:
        policy = replace(
            policy,
            admission=_explaining(policy.admission, explains, explain_lines),
            alone=None if policy.alone is None else _explaining(policy.alone, explains, explain_lines),
            gentle=None if policy.gentle is None else _explaining(policy.gentle, explains, explain_lines),
            hope=None if policy.hope is None else _explaining(policy.hope, explains, explain_lines=False),
        )
    return policy if routing is None else replace(policy, routing=get_routing(routing))


def _explaining(admission: AdmissionPolicy, explains: bool, explain_lines: bool) -> AdmissionPolicy:
    said = {"explains": explains, "explain_lines": explain_lines}
    known = {name: value for name, value in said.items() if _has_field(admission, name)}
    explaining: AdmissionPolicy = cast(Any, replace)(admission, **known) if known else admission
    return explaining


def _has_field(part: object, name: str) -> bool:
    return is_dataclass(part) and any(f.name == name for f in fields(part))


def get_routing(name: str) -> RoutingPolicy:
    """Routing policy by name; ValueError names the ones there are."""
    return routing_get(name)


def batch_policy(name: str, best_effort_floor: float | None = None) -> BatchPolicy:
    """Only the batch part of a policy, as the step scheduler inside the engine takes it.

    best_effort_floor: share of the time kept for best-effort work, where the policy has that setting.
    """
    batching = get(name).batching
    if best_effort_floor is None:
        return batching
    if not 0.0 <= best_effort_floor < 1.0:
        raise ValueError(f"best_effort_floor must lie in [0, 1), not {best_effort_floor}")
    if _has_field(batching, "best_effort_floor"):
        changed: BatchPolicy = cast(Any, replace)(batching, best_effort_floor=best_effort_floor)
        return changed
    return batching
