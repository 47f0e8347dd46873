"""A hardware profile and its JSON form.

A profile is read by name (a file beside this one) or by path. Two forms are understood: our own, with a provenance
for every value, and what `slosctl profile` wrote from a real engine (a time model with the engine's limits).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits

FOLDER = Path(__file__).parent
KINDS = ("measured", "computed", "assumed")


class ProfileError(ValueError):
    """A profile cannot be read; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a value comes from: measured, computed or assumed; by whom; how far off it may be."""

    kind: str
    source: str
    uncertainty: str


@dataclass(frozen=True, slots=True)
class Link:
    """Link between two replicas that hand KV over: seconds per transfer plus bytes / bandwidth."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, size_bytes: float) -> float:
        """Time of one transfer."""
        return self.latency_s + size_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Profile:
    """One replica of a model on some hardware.

    limits.max_batch_tokens is the most tokens that the engine computes in a step, and the chunk of the zero-load
    prefill that TTFT slowdowns refer to. spec_acceptance: chance that a drafted token is accepted, 0 without a drafter.
    """

    name: str
    description: str
    model: str
    gpu: str
    gpus_per_replica: int
    time_model: TimeModel
    limits: EngineLimits
    kv_bytes_per_token: int
    link: Link
    spec_acceptance: float
    provenance: dict[str, Provenance]

    def zero_load_prefill_s(self, prompt_tokens: int) -> float:
        """The reference that TTFT slowdowns multiply."""
        return self.time_model.zero_load_prefill_s(prompt_tokens, self.limits.max_batch_tokens)

    def to_json(self) -> str:
        """The profile as JSON; load reads it back."""
        limits = self.limits
        data = {
            "name": self.name,
            "description": self.description,
            "model": self.model,
            "gpu": self.gpu,
            "gpus_per_replica": self.gpus_per_replica,
            "time_model": json.loads(self.time_model.to_json()),
            "limits": {name: getattr(limits, name) for name in EngineLimits.__dataclass_fields__},
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "link": {"latency_s": self.link.latency_s, "bytes_per_s": self.link.bytes_per_s},
            "spec_acceptance": self.spec_acceptance,
            "provenance": {
                key: {"kind": p.kind, "source": p.source, "uncertainty": p.uncertainty}
                for key, p in self.provenance.items()
            },
        }
        return json.dumps(data, indent=1) + "\n"


def names() -> tuple[str, ...]:
    """Names of the profiles in the tree."""
    return tuple(sorted(p.stem for p in FOLDER.glob("*.json")))


def load(name_or_path: str) -> Profile:
    """Profile by name or by path of a JSON file; ProfileError says what is wrong."""
    path = FOLDER / f"{name_or_path}.json"
    if not path.is_file():
        path = Path(name_or_path)
        if not path.is_file():
            raise ProfileError(
                f"unknown profile {name_or_path!r}: neither a file nor one of {', '.join(names())};"
                " `slosctl profile --json > FILE` writes one from a running replica"
            )
    try:
        data = json.loads(path.read_text())
        return _own_form(data) if "provenance" in data else _engine_form(path.stem, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProfileError(f"{path} is not a hardware profile: {error!r}") from error


def _own_form(data: dict[str, Any]) -> Profile:
    provenance = {key: Provenance(**value) for key, value in data["provenance"].items()}
    for key, value in provenance.items():
        if value.kind not in KINDS:
            raise ValueError(f"provenance of {key} is {value.kind!r}, not one of {KINDS}")
    return Profile(
        name=data["name"],
        description=data["description"],
        model=data["model"],
        gpu=data["gpu"],
        gpus_per_replica=int(data["gpus_per_replica"]),
        time_model=TimeModel.from_json(json.dumps(data["time_model"])),
        limits=EngineLimits(**data["limits"]),
        kv_bytes_per_token=int(data["kv_bytes_per_token"]),
        link=Link(**data["link"]),
        spec_acceptance=float(data["spec_acceptance"]),
        provenance=provenance,
    )


def _engine_form(name: str, data: dict[str, Any]) -> Profile:
    """What `slosctl profile --json` prints: {"time_model": ..., "engine": {...}}, or a bare time model."""
    engine = data.get("engine", {})
    block = int(engine.get("block_size", 16))
    limits = EngineLimits(
        max_batch_tokens=int(engine.get("max_batch_tokens", 2048)),
        max_batch_requests=int(engine.get("max_batch_requests", 256)),
        block_size=block,
        total_blocks=int(engine.get("kv_blocks", 32768 // block)),
        max_model_len=int(engine.get("max_model_len", 8192)),
        max_spec_tokens=int(engine.get("max_spec_tokens", 1)),
    )
    measured = Provenance("measured", "slosctl profile", "see the quality of the fit in the time model")
    model = data.get("time_model", data)
    return Profile(
        name=name,
        description="Fitted to a real engine by slosctl profile",
        model=str(engine.get("model", "")),
        gpu=str(engine.get("hardware", "")),
        gpus_per_replica=1,
        time_model=TimeModel.from_json(model if isinstance(model, str) else json.dumps(model)),
        limits=limits,
        kv_bytes_per_token=int(engine.get("kv_bytes_per_token", 131072)),
        link=Link(0.001, 25e9),
        spec_acceptance=0.0,
        provenance={"time_model": measured, "limits": measured},
    )
