"""What a worker sees of an engine, real or emulated.

Times are seconds on time.monotonic(), which every process of one host shares.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from scheduling.time_model import BatchShape


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about a started engine; lengths in tokens.

    kv_address: host:port of the KV endpoint, empty where there is none. kv_layout: form of the KV and the way it
    travels; only engines of which it is the same hand KV over.
    """

    model: str
    kv_blocks: int
    block_size: int
    max_model_len: int
    max_batch_tokens: int
    max_batch_requests: int
    hardware: str
    emulated: bool
    max_spec_tokens: int = 1
    prefix_caching: bool = True
    kv_address: str = ""
    kv_layout: str = ""


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """Sampling of one request; names and meanings are vLLM's. None means vLLM's default."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = None
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    logprobs: int | None = None
    json_schema: str = ""
    json_object: bool = False
    logit_bias: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KvTransferSpec:
    """One KV hand-over; see protos/slos/v1/worker.proto KvTransfer."""

    transfer_id: str
    generation: int
    producer: bool
    peer: str
    peer_address: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request as submitted to an engine.

    token_ids: prompt followed by tokens produced before a failover; prompt_tokens says where the prompt ends.
    max_tokens and min_tokens in sampling count output from the original prompt. first_token_due_s and
    next_token_due_s are absolute; next_token_due_s is set for a request that resumes after its first token.
    hopeful: best effort that is served by its deadlines where that costs no promise.
    text_chars: characters of output text that the client has from before a failover; the text of a request that
    resumes goes on right after them.
    """

    request_id: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    sampling: SamplingSpec
    standard: bool
    arrival_s: float
    first_token_due_s: float
    tpot_s: float
    next_token_due_s: float | None = None
    thinking_tpot_s: float | None = None
    thinking_end_token_id: int | None = None
    thinking_done: bool = False
    expected_output_tokens: int = 256
    value: float = 1.0
    slo_class: str = ""
    session_id: str = ""
    kv_transfer: KvTransferSpec | None = None
    text_chars: int = 0
    hopeful: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One candidate token at one position."""

    token_id: int
    logprob: float
    rank: int
    text: str


@dataclass(frozen=True, slots=True)
class RequestUpdate:
    """What a step changed for one request; the chosen token leads each position of logprobs.

    finish_reason: "", "stop", "length", "cancelled" or "error" (then error says why). kv_handle: at the end of a
    prefill half, what the engine that decodes must be told before it can fetch the KV (hand_over); opaque, and empty
    where the transport does not need it. accepted_draft_tokens of draft_tokens: in this step. accept_rate: chance that
    a drafted token is accepted, draft_share: of steps that have drafts; both 0 where the engine says nothing of that.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    finish_reason: str = ""
    error: str = ""
    prefill_remaining: int = 0
    context_tokens: int = 0
    kv_blocks: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    accepted_draft_tokens: int = 0
    draft_tokens: int = 0
    accept_rate: float = 0.0
    draft_share: float = 0.0
    relegated: bool = False
    kv_recomputed: bool = False
    kv_handle: str = ""


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One engine step: tokens and planner state together; predicted_s is without the planner's margin.

    shape: what its duration depends on; None where nothing was computed.
    """

    step: int
    ended_s: float
    duration_s: float
    predicted_s: float
    updates: tuple[RequestUpdate, ...]
    free_blocks: int
    batch_tokens: int
    batch_requests: int
    shape: BatchShape | None = None


@dataclass(frozen=True, slots=True)
class StepSettings:
    """Settings of the step scheduler; None leaves a setting as it is.

    time_model_json: see scheduling.time_model.TimeModel.to_json.
    """

    policy: str | None = None
    time_margin: float | None = None
    best_effort_floor: float | None = None
    time_model_json: str | None = None


class EngineError(Exception):
    """The engine cannot do what was asked; the text says what to do."""


class RequestRejected(EngineError):
    """One request cannot be run; the engine goes on. code is a gRPC status name, such as INVALID_ARGUMENT."""

    def __init__(self, code: str, reason: str) -> None:
        """Keep the status name and the text for people."""
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Engine(Protocol):
    """One model on one device group."""

    async def start(self) -> EngineInfo:
        """Load the model and warm up; EngineError when it cannot."""
        ...

    async def submit(self, request: EngineRequest) -> None:
        """Queue a request; RequestRejected when it can never run, for example a duplicate id."""
        ...

    async def cancel(self, request_id: str) -> None:
        """Stop a request and free its KV; its last update has finish_reason "cancelled". Unknown ids are ignored."""
        ...

    async def hand_over(self, request_id: str, kv_handle: str) -> None:
        """Tell where the KV of a decode half lies, once its prefill half is done; unknown ids are ignored.

        An engine whose transport has no need of this ignores it.
        """
        ...

    async def promote(self, request_id: str, first_token_due_s: float, next_token_due_s: float | None) -> None:
        """Make a best-effort request standard."""
        ...

    async def relegate(self, request_id: str) -> None:
        """Make a standard request best effort."""
        ...

    async def configure(self, settings: StepSettings) -> None:
        """Change the step scheduler's settings; EngineError when a name is unknown."""
        ...

    async def profile(self, quick: bool) -> str:
        """Run a profile of batches on the idle engine and return the fitted time model as JSON."""
        ...

    def events(self) -> AsyncIterator[StepEvent]:
        """Yield every step in order; ends when the engine closes, raises EngineError when it dies."""
        ...

    async def close(self) -> None:
        """Stop the engine and its processes; safe to call twice."""
        ...
