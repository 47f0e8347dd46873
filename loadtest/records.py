"""What is sent and what is kept of it: one call, the pieces of its answer, and one record per request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the cluster, in the words of both APIs.

    messages: (role, content). slo_class and round ("", "inner", "last") as the API takes them; a None leaves the
    field to the class. seed makes sampling repeatable; natural_stop lets the model end before max_tokens.
    """

    model: str
    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    slo_class: str
    seed: int
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    thinking_tpot_ms: float | None = None
    round: str = ""
    on_miss: str = "best_effort"
    session_id: str = ""
    tenant: str = ""
    temperature: float = 0.0
    natural_stop: bool = False


@dataclass(frozen=True, slots=True)
class PromiseInfo:
    """What the controller said; admission is "standard" or "best_effort"; milliseconds."""

    admission: str
    slo_class: str
    ttft_ms: float
    tpot_ms: float
    thinking_tpot_ms: float
    replica: str
    reason: str

    @property
    def standard(self) -> bool:
        """The SLOs are guaranteed."""
        return self.admission == "standard"


@dataclass(frozen=True, slots=True)
class OutcomeInfo:
    """What the controller measured, as slos.v1.Outcome; milliseconds."""

    attained: bool
    promised: bool
    promise_kept: bool
    attained_paper: bool
    ttft_ms: float
    mean_tpot_ms: float
    worst_lateness_ms: float


@dataclass(frozen=True, slots=True)
class Piece:
    """One message of an answer.

    tokens is None where the API does not say how many tokens a piece of text holds (HTTP). request_id is in every
    piece that knows it; finish_reason, counts and outcome are in the last.
    """

    text: str = ""
    reasoning_text: str = ""
    tokens: int | None = 0
    request_id: str = ""
    promise: PromiseInfo | None = None
    finish_reason: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    outcome: OutcomeInfo | None = None


class CallFailed(Exception):
    """A request was refused or broke; code is an HTTP status or a gRPC status name, the text is the server's own.

    refused: a clear answer before any output, such as 429 or RESOURCE_EXHAUSTED, not a breakdown.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    @property
    def refused(self) -> bool:
        """The cluster said no because it is full."""
        return self.code in ("429", "RESOURCE_EXHAUSTED")


class Transport(Protocol):
    """One of the two public APIs."""

    name: str

    def generate(self, call: Call, timeout_s: float) -> Iterator[Piece]:
        """Send a call and yield its answer as it comes; CallFailed when it is refused, breaks or takes too long."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """One request of a run. Times in seconds; due_s and sent_s from the start of the run, token times from sent_s.

    error is empty for a request that ended by itself (finish_reason is set then). exact_tokens is False where the API
    did not say which tokens a piece of text held and the times are spread evenly over the pieces.
    client_*: the same scoring over what this client saw; None when the request was not scored.
    """

    application: str
    transport: str
    request_id: str
    session: int
    round: str
    due_s: float
    sent_s: float
    planned_prompt_tokens: int
    planned_output_tokens: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    thinking_tokens: int
    token_times_s: tuple[float, ...]
    exact_tokens: bool
    finish_reason: str
    error: str
    refused: bool
    promise: PromiseInfo | None
    outcome: OutcomeInfo | None
    client_attained: bool | None
    client_attained_paper: bool | None
    client_ttft_ms: float | None
    client_tpot_ms: float | None

    @property
    def finished(self) -> bool:
        """It ended by itself."""
        return not self.error and self.finish_reason in ("stop", "length", "tool_calls")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Record:
        """Read what to_dict made, for reports made later."""
        values = {f.name: data[f.name] for f in fields(Record)}
        values["token_times_s"] = tuple(values["token_times_s"])
        values["promise"] = PromiseInfo(**values["promise"]) if values["promise"] else None
        values["outcome"] = OutcomeInfo(**values["outcome"]) if values["outcome"] else None
        return Record(**values)
