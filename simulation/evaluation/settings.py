"""Best configurations of the policies, found by `python -m simulation.evaluation.tune` and kept in tuned.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from simulation.config import ClusterConfig

TUNED = Path(__file__).with_name("tuned.json")
Options = tuple[tuple[str, object], ...]

GRIDS: dict[str, dict[str, tuple[object, ...]]] = {
    "vllm": {"token_budget": (4096, 2048), "max_requests": (256, 128, 64)},
    "vllm-v1": {"token_budget": (2048, 1024, 512, 4096, 256), "max_requests": (256, 128, 64)},
    "sarathi": {"token_budget": (0, 512, 1024, 2048, 256), "target_s": (0.0, -1.0)},
    "distserve": {"token_budget": (2048, 4096, 1024)},
    "qoserve": {"alpha": (1.0, 0.0, 0.5, 2.0, 4.0), "longest_s": (0.2, 0.1, 0.4), "relegate_behind": (False, True)},
}
"""What the search may choose from, the default first."""

RATIOS = {"distserve": ((1, 1), (2, 1), (1, 2))}
"""Prefill to decode replicas."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One configuration of one policy; ratio (0, 0): co-located; rate_per_gpu: what it reached on the tuning part."""

    policy: str
    options: Options = ()
    ratio: tuple[int, int] = (0, 0)
    rate_per_gpu: float = 0.0

    def cluster(self, replicas: int, **changes: Any) -> ClusterConfig:
        """A cluster of this many replicas, or of the smallest multiple of the ratio that has at least as many."""
        prefill, decode = self.ratio
        if prefill == 0:
            return ClusterConfig(self.policy, self.options, replicas=replicas, **changes)
        groups = max(1, -(-replicas // (prefill + decode)))
        return ClusterConfig(
            self.policy,
            self.options,
            replicas=groups * (prefill + decode),
            prefill_replicas=groups * prefill,
            **changes,
        )


def candidates(policy: str) -> list[Setting]:
    """All configurations that the search may choose, defaults first."""
    grid = GRIDS.get(policy, {})
    found = []
    for ratio in RATIOS.get(policy, ((0, 0),)):
        for values in product(*grid.values()):
            options = dict(zip(grid, values, strict=True))
            if policy == "sarathi" and (options["token_budget"] == 0) == (options["target_s"] == -1.0):
                continue
            found.append(Setting(policy, tuple(options.items()), ratio))
    return found


def tuned(policy: str, profile: str, scenario: str) -> Setting:
    """The best configuration found for this cell; the default where none was searched."""
    entry = _tuned().get(f"{policy}/{profile}/{scenario}")
    if entry is None:
        return candidates(policy)[0]
    return Setting(policy, tuple(entry["options"].items()), tuple(entry["ratio"]), entry["rate_per_gpu"])


def is_tuned(policy: str, profile: str, scenario: str) -> bool:
    """Whether a configuration was searched for this cell, or the policy has none to search."""
    return policy not in GRIDS or f"{policy}/{profile}/{scenario}" in _tuned()


@lru_cache(maxsize=1)
def _tuned() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(TUNED.read_text()) if TUNED.is_file() else {}
    return data
