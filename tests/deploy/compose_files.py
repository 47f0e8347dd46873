"""Compose files as a compose tool sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# Importing it also teaches yaml.safe_load the tag !reset.
from podman_compose import ResetTag, rec_merge, rec_subs

ROOT = Path(__file__).resolve().parents[2]


def merged(files: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The files as a compose tool sees them: later ones win, variables put in, anchors' own keys gone."""
    result: dict[str, Any] = {}
    for name in files:
        content = yaml.safe_load((ROOT / name).read_text())
        rec_merge(result, {key: value for key, value in content.items() if not key.startswith("x-")})
    return without_reset(rec_subs(result, environment))


def without_reset(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_reset(item) for key, item in value.items() if not isinstance(item, ResetTag)}
    return value
