"""Reads the few figures of the controller's /metrics that benchmarks show beside their own."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Sequence

_LINE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)$")
_LE = re.compile(r'le="([^"]+)"')
_TIMEOUT_S = 10.0

Buckets = list[tuple[float, float]]
"""(upper edge, cumulative count), ascending."""


def fetch(url: str) -> str:
    """The text of /metrics of a controller at this base URL."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=_TIMEOUT_S) as response:
        return str(response.read().decode())


def values(text: str, name: str) -> list[float]:
    """All samples of a metric, whatever their labels."""
    return [float(m["value"]) for m in map(_LINE.match, text.splitlines()) if m and m["name"] == name]


def buckets(text: str, name: str) -> Buckets:
    """A histogram's buckets, summed over all labels but the edge."""
    counts: dict[float, float] = {}
    for match in map(_LINE.match, text.splitlines()):
        if match and match["name"] == f"{name}_bucket" and (edge := _LE.search(match["labels"] or "")):
            counts[float(edge[1])] = counts.get(float(edge[1]), 0.0) + float(match["value"])
    return sorted(counts.items())


def since(now: Buckets, before: Buckets) -> Buckets:
    """What has been counted since an earlier reading."""
    earlier = dict(before)
    return [(edge, count - earlier.get(edge, 0.0)) for edge, count in now]


def quantile(histogram: Sequence[tuple[float, float]], share: float) -> float | None:
    """Quantile by linear interpolation inside its bucket, as Prometheus does; None when nothing was counted.

    In the last, open bucket it is that bucket's lower edge.
    """
    total = histogram[-1][1] if histogram else 0.0
    if total <= 0:
        return None
    wanted = share * total
    lower, below = 0.0, 0.0
    for edge, count in histogram:
        if count >= wanted:
            if edge == float("inf") or count == below:
                return lower
            return lower + (edge - lower) * (wanted - below) / (count - below)
        lower, below = edge, count
    return lower
