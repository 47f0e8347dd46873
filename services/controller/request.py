"""One request while the controller serves it: its promise, its output, and what its client has not read yet."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from protos.slos.v1 import client_pb2, common_pb2
from scheduling.types import Admission, OnMiss, Slo
from services.controller.contract import ApiError, GenerationCall
from services.controller.prefix import block_chain
from services.controller.reasoning import ReasoningSplitter

HISTORY_LIMIT = 64
_CODES = {common_pb2.FINISH_REASON_ERROR: "INTERNAL", common_pb2.FINISH_REASON_CANCELLED: "CANCELLED"}
"""gRPC status names of ends that nobody has named better; HTTP clients get the same."""


class Outbox:
    """What the client has not read yet, merged into one message; at most one reader.

    It is bounded by the model window: tokens that wait are merged, never queued message by message.
    """

    def __init__(self, request_id: str) -> None:
        """Start empty."""
        self._request_id = request_id
        self._message: client_pb2.GenerateResponse | None = None
        self._error: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.produced_s: float | None = None

    def open(self, produced_s: float | None = None) -> client_pb2.GenerateResponse:
        """Return the message under construction; the reader is woken.

        produced_s: when the engine had what is put in now. The attribute of that name keeps it until the next read,
        for a reader that was waiting: only such a one tells how long relaying takes.
        """
        if self._message is None:
            self._message = client_pb2.GenerateResponse(request_id=self._request_id)
        if self._waiter is not None and not self._waiter.done():
            self.produced_s = produced_s
            self._waiter.set_result(None)
        return self._message

    def fail(self, error: ApiError) -> None:
        """Make the next read raise."""
        self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self) -> client_pb2.GenerateResponse:
        """Wait for news; ApiError when the request was refused."""
        while self._message is None and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None:
            raise self._error
        assert self._message is not None
        message, self._message = self._message, None
        return message

    def take_produced_s(self) -> float | None:
        """When the engine had the tokens just read; None when the reader was not waiting for them."""
        produced_s, self.produced_s = self.produced_s, None
        return produced_s


@dataclass(slots=True, eq=False)
class LiveRequest:
    """State of one request from arrival to the last message.

    slo: what the client was told, from arrival. value: worth of the promise. max_output_tokens: bound by max_tokens
    and the window. zero_load_s: prefill time of the prompt on an idle engine. epoch: number of the current
    submission; wire_id names it on workers, so that events of an earlier submission can never be taken for events of
    this one. attempts: submissions that have failed. late: a token has missed its due time. hopeful: sent
    without a promise, to be served by its deadlines all the same. answered: admission has
    decided once. told: the client has had a message. replica: the worker that produces its tokens; prefill_replica:
    the one that computes its prompt for it; prefilled_s: when that was done, 0 before. next_due_s: when the next token
    is due, known when it resumes. Times are monotonic.
    """

    request_id: str
    call: GenerationCall
    slo_class: str
    tenant: str
    slo: Slo
    value: float
    on_miss: OnMiss
    sampling: common_pb2.Sampling
    expected_output_tokens: int
    max_output_tokens: int
    outbox: Outbox
    zero_load_s: float = 0.0
    splitter: ReasoningSplitter | None = None
    thinking_end_token_id: int | None = None
    admission: Admission = Admission.BEST_EFFORT
    reason: str = ""
    promised: bool = False
    replica: str = ""
    prefill_replica: str = ""
    prefilled_s: float = 0.0
    kv_recomputed: bool = False
    epoch: int = 0
    attempts: int = 0
    output: list[int] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    text_chars: int = 0
    thinking_tokens: int = 0
    thinking_done: bool = False
    cached_tokens: int = 0
    next_due_s: float | None = None
    finish_reason: common_pb2.FinishReason = common_pb2.FINISH_REASON_UNSPECIFIED
    error: str = ""
    outcome: common_pb2.Outcome | None = None
    finished_s: float = 0.0
    displaced_s: float = 0.0
    retry_at_s: float = 0.0
    answered: bool = False
    told: bool = False
    late: bool = False
    hopeful: bool = False
    explain: dict[str, object] = field(default_factory=dict)
    _chain_key: tuple[int, int] = (0, 0)
    _chain: tuple[int, ...] = ()
    _history: deque[str] = field(default_factory=lambda: deque(maxlen=HISTORY_LIMIT))

    @property
    def arrival_s(self) -> float:
        """When the front door had received the body."""
        return self.call.received_s

    @property
    def first_due_s(self) -> float:
        """When the client is owed its first token."""
        return self.call.received_s + self.slo.ttft_s

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.call.token_ids)

    @property
    def wire_id(self) -> str:
        """Name of the current submission on workers."""
        return self.request_id if self.epoch == 0 else f"{self.request_id}~{self.epoch}"

    @property
    def finished(self) -> bool:
        """The last message has been put into the outbox."""
        return self.finish_reason != common_pb2.FINISH_REASON_UNSPECIFIED

    @property
    def phase(self) -> str:
        """Where it stands, in the admin API's words."""
        if self.finished:
            return "finished"
        if not self.replica:
            return "queued"
        return "decode" if self.output else "prefill"

    @property
    def history(self) -> Iterator[str]:
        """What happened to it, oldest first."""
        return iter(self._history)

    def tokens(self) -> tuple[int, ...]:
        """Prompt and output so far."""
        return (*self.call.token_ids, *self.output)

    def chain(self, block_size: int) -> tuple[int, ...]:
        """Blocks of prompt and output so far; see services.controller.prefix."""
        key = (block_size, len(self.output))
        if self._chain_key != key:
            self._chain_key, self._chain = key, block_chain(self.tokens(), block_size)
        return self._chain

    def note(self, text: str) -> None:
        """Remember what happened."""
        self._history.append(f"{time.monotonic() - self.arrival_s:.3f} s: {text}")

    def promise(self) -> common_pb2.Promise:
        """The promise in force."""
        standard = self.admission is Admission.STANDARD
        return common_pb2.Promise(
            admission=common_pb2.ADMISSION_STANDARD if standard else common_pb2.ADMISSION_BEST_EFFORT,
            slo_class=self.slo_class,
            ttft_ms=self.slo.ttft_s * 1e3,
            tpot_ms=self.slo.tpot_s * 1e3,
            thinking_tpot_ms=(self.slo.thinking_tpot_s or 0.0) * 1e3,
            replica=self.replica,
            reason="" if standard else self.reason,
        )

    def tell_promise(self) -> None:
        """Put the promise in force into the next message."""
        if not self.finished:
            self.outbox.open().promise.CopyFrom(self.promise())

    def became(self, admission: Admission, reason: str = "") -> None:
        """Take a new admission and tell the client."""
        self.admission = admission
        self.reason = reason
        if admission is Admission.STANDARD:
            self.promised = True
            self.hopeful = False
        self.tell_promise()

    def finish(self, finish_reason: common_pb2.FinishReason, error: str = "", error_code: str = "") -> None:
        """End the request towards its client; a second end is ignored. error_code: gRPC status name of an error."""
        if self.finished:
            return
        message = self.outbox.open()
        if self.splitter is not None:
            reasoning, answer = self.splitter.flush()
            message.reasoning_text += reasoning
            message.text += answer
        self.finish_reason = finish_reason
        self.error = error
        self.finished_s = time.monotonic()
        message.finish_reason = finish_reason
        message.error = error
        message.error_code = error_code or _CODES.get(finish_reason, "")
        message.prompt_tokens = self.prompt_tokens
        message.output_tokens = len(self.output)
        message.cached_tokens = self.cached_tokens
        name = common_pb2.FinishReason.Name(finish_reason).removeprefix("FINISH_REASON_").lower()
        self.note(f"finished: {name}{': ' + error if error else ''}, {len(self.output)} output tokens")
