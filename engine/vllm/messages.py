"""Messages between the step scheduler, inside vLLM's engine process, and the engine's own process.

Frames on a Unix socket: four bytes of length, then msgpack. Downwards: promotions and settings. Upwards: facts once,
then one numbered record per step.
"""

from __future__ import annotations

import struct

import msgspec

HEADER = struct.Struct(">I")
MAX_FRAME = 64 << 20
REQUEST_ARG = "slos"
"""Key of a request's RequestFacts in vLLM's sampling_params.extra_args."""


class RequestFacts(msgspec.Struct, frozen=True):
    """What the step scheduler knows of a request beyond vLLM's own fields; times are on time.monotonic().

    prior_tokens: output produced before a failover, which vLLM sees as part of the prompt.
    """

    request_id: str
    standard: bool
    arrival_s: float
    first_token_due_s: float
    tpot_s: float
    prior_tokens: int = 0
    next_token_due_s: float | None = None
    thinking_tpot_s: float | None = None
    thinking_end_token_id: int | None = None
    thinking_done: bool = False
    expected_output_tokens: int = 256
    value: float = 1.0
    slo_class: str = ""
    hopeful: bool = False


class Promote(msgspec.Struct, frozen=True, tag="promote"):
    """Make a request standard."""

    request_id: str
    first_token_due_s: float
    next_token_due_s: float | None


class Relegate(msgspec.Struct, frozen=True, tag="relegate"):
    """Make a request best effort."""

    request_id: str


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Change settings; None leaves one as it is."""

    policy: str | None = None
    time_margin: float | None = None
    best_effort_floor: float | None = None
    time_model_json: str | None = None


Command = Promote | Relegate | Configure


class EngineFacts(msgspec.Struct, frozen=True, tag="facts"):
    """Said once, before the first step."""

    pid: int
    total_blocks: int
    block_size: int
    max_spec_tokens: int


class RequestRecord(msgspec.Struct, frozen=True, gc=False):
    """What a step changed for one request.

    tokens: output tokens of this step; produced: output tokens since this engine took the request. planned_tokens and
    scheduled_tokens: what the policy asked for and what vLLM ran. gone: the request left the engine in this step.
    """

    request_id: str
    tokens: list[int] = []
    produced: int = 0
    prefill_remaining: int = 0
    context: int = 0
    kv_blocks: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    accept_rate: float = 0.0
    draft_share: float = 0.0
    planned_tokens: int = 0
    scheduled_tokens: int = 0
    relegated: bool = False
    kv_recomputed: bool = False
    gone: bool = False


class DecodeRecords(msgspec.Struct, frozen=True, gc=False):
    """The records of requests that decoded one token as planned, most of most steps: column by column, which is cheap.

    tokens has one token of each. planned_tokens is the same for all: 1, or 0 where vLLM's own order was used. The
    fields of RequestRecord that are not here have their defaults, scheduled_tokens is 1.
    """

    request_ids: list[str]
    tokens: list[int]
    produced: list[int]
    context: list[int]
    kv_blocks: list[int]
    preemptions: list[int]
    cached_tokens: list[int]
    planned_tokens: int

    def each(self) -> list[RequestRecord]:
        """Return them one by one."""
        rows = zip(
            self.request_ids,
            self.tokens,
            self.produced,
            self.context,
            self.kv_blocks,
            self.preemptions,
            self.cached_tokens,
            strict=True,
        )
        return [
            RequestRecord(
                request_id=request_id,
                tokens=[token],
                produced=produced,
                context=context,
                kv_blocks=kv_blocks,
                preemptions=preemptions,
                cached_tokens=cached_tokens,
                planned_tokens=self.planned_tokens,
                scheduled_tokens=1,
            )
            for request_id, token, produced, context, kv_blocks, preemptions, cached_tokens in rows
        ]


class StepRecord(msgspec.Struct, frozen=True, tag="step"):
    """One step of the engine.

    plan_s: time of the policy. overhead_s: time of everything that the step scheduler adds to vLLM's own, the policy's
    included. stock: vLLM's own order was used. plan_failures: steps so far in which the policy raised. deviations:
    steps so far in which vLLM ran other chunks than planned. shape: scheduling.time_model.BatchShape, field by field.
    decodes and requests together tell of each request that the step changed, see each().
    """

    step: int
    started_s: float
    ended_s: float
    duration_s: float
    predicted_s: float
    plan_s: float
    overhead_s: float
    free_blocks: int
    batch_tokens: int
    batch_requests: int
    shape: tuple[float, float, float, float, float]
    requests: list[RequestRecord]
    stock: bool = False
    plan_failures: int = 0
    deviations: int = 0
    decodes: DecodeRecords | None = None

    def each(self) -> list[RequestRecord]:
        """Return the records of all requests, one by one."""
        return self.requests if self.decodes is None else self.decodes.each() + self.requests


Report = EngineFacts | StepRecord

_encoder = msgspec.msgpack.Encoder()
_command_decoder = msgspec.msgpack.Decoder(Command)
_report_decoder = msgspec.msgpack.Decoder(Report)


def frame(message: Command | Report) -> bytes:
    """Encode one message with its header."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


def decode_command(body: bytes) -> Command:
    """Decode a frame's body on the scheduler's side."""
    return _command_decoder.decode(body)


def decode_report(body: bytes) -> Report:
    """Decode a frame's body on the engine's side."""
    return _report_decoder.decode(body)
