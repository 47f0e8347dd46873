"""Join the records of the step scheduler with the text of AsyncLLM, so that one event carries both.

The two come on two ways and in any order. A record waits for the text of its tokens, but not for ever: when the text
lags, the planner's state goes ahead and the tokens follow in a later event. Nothing is lost and nothing is stuck.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.protocol import RequestUpdate, StepEvent, TokenLogprob
from engine.vllm.messages import RequestRecord, StepRecord
from scheduling.time_model import BatchShape

Logprobs = tuple[tuple[TokenLogprob, ...], ...]


@dataclass(slots=True)
class _Stream:
    """Output of one request that has come from AsyncLLM and was not passed on yet.

    received and sent count tokens since this engine took the request. texts: (tokens received with it, text).
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[tuple[TokenLogprob, ...]] = field(default_factory=list)
    texts: deque[tuple[int, str]] = field(default_factory=deque)
    received: int = 0
    sent: int = 0
    pending_records: int = 0
    state: RequestRecord | None = None
    finish_reason: str = ""
    error: str = ""
    kv_handle: str = ""


class StepJoiner:
    """Takes records and outputs as they come; gives events in the order of steps."""

    def __init__(self, lag_limit_s: float, free_blocks: int) -> None:
        """lag_limit_s: longest time a record waits for its text; free_blocks: of the idle engine."""
        self._lag_limit_s = lag_limit_s
        self._records: deque[tuple[StepRecord, list[RequestRecord], float]] = deque()
        self._streams: dict[str, _Stream] = {}
        self._loose: set[str] = set()
        self._last_step, self._free_blocks = 0, free_blocks

    def __contains__(self, request_id: object) -> bool:
        """Whether the request's last update is still to come."""
        return request_id in self._streams

    @property
    def busy(self) -> bool:
        """Whether any request is open."""
        return bool(self._streams)

    def open(self, request_id: str) -> None:
        """Expect output of a request."""
        self._streams[request_id] = _Stream()

    def discard(self, request_id: str) -> None:
        """Forget a request that was never run."""
        self._streams.pop(request_id, None)
        self._loose.discard(request_id)

    def add_record(self, record: StepRecord, now_s: float) -> None:
        """Take the record of a step."""
        requests = record.each()
        self._records.append((record, requests, now_s))
        for request in requests:
            stream = self._streams.get(request.request_id)
            if stream is not None:
                stream.pending_records += 1

    def add_output(
        self,
        request_id: str,
        token_ids: tuple[int, ...] = (),
        text: str = "",
        logprobs: Logprobs = (),
        finish_reason: str = "",
        error: str = "",
        kv_handle: str = "",
    ) -> None:
        """Take output of AsyncLLM; what comes after a finish is dropped."""
        stream = self._streams.get(request_id)
        if stream is None or stream.finish_reason:
            return
        stream.tokens.extend(token_ids)
        stream.logprobs.extend(logprobs)
        stream.received += len(token_ids)
        if text:
            stream.texts.append((stream.received, text))
        stream.finish_reason, stream.error, stream.kv_handle = finish_reason, error, kv_handle
        self._loose.add(request_id)

    def fail_all(self, error: str) -> None:
        """End every open request with an error."""
        for request_id in list(self._streams):
            self.add_output(request_id, finish_reason="error", error=error)

    def next_deadline_s(self) -> float | None:
        """When the oldest waiting record stops waiting for text; None when none waits."""
        return self._records[0][2] + self._lag_limit_s if self._records else None

    def take(self, now_s: float) -> list[StepEvent]:
        """Events that are complete by now, and those whose text has lagged too long."""
        events = []
        while self._records:
            record, requests, since = self._records[0]
            if now_s - since < self._lag_limit_s and not all(map(self._has_text, requests)):
                break
            self._records.popleft()
            events.append(self._event(record, requests))
        if loose := self._loose_updates():
            events.append(self._event_without_step(loose, now_s))
        return events

    def _has_text(self, request: RequestRecord) -> bool:
        stream = self._streams.get(request.request_id)
        return stream is None or bool(stream.finish_reason) or stream.received >= request.produced

    def _event(self, record: StepRecord, requests: Sequence[RequestRecord]) -> StepEvent:
        self._last_step, self._free_blocks = record.step, record.free_blocks
        updates = []
        for request in requests:
            stream = self._streams.get(request.request_id)
            if stream is None:
                continue
            stream.pending_records -= 1
            stream.state = request
            updates.append(self._update(request, stream, up_to=request.produced))
        return StepEvent(
            step=record.step,
            ended_s=record.ended_s,
            duration_s=record.duration_s,
            predicted_s=record.predicted_s,
            updates=tuple(updates),
            free_blocks=record.free_blocks,
            batch_tokens=record.batch_tokens,
            batch_requests=record.batch_requests,
            shape=BatchShape(*record.shape) if record.batch_tokens else None,
        )

    def _loose_updates(self) -> list[RequestUpdate]:
        """Output that no waiting record will carry: its record went ahead, or it was cancelled or failed."""
        updates = []
        for request_id in list(self._loose):
            stream = self._streams.get(request_id)
            if stream is None or (stream.received == stream.sent and not stream.texts and not stream.finish_reason):
                self._loose.discard(request_id)
                continue
            if stream.pending_records:
                continue
            # Tokens wait for the record of their step, unless the request has ended without one.
            known = stream.state.produced if stream.state is not None else 0
            cut_off = stream.finish_reason in ("cancelled", "error")
            ended = bool(stream.finish_reason) and stream.received <= known
            if cut_off or ended or stream.sent < min(known, stream.received):
                state = stream.state or RequestRecord(request_id)
                updates.append(self._update(state, stream, stream.received if cut_off else known, late=True))
        return updates

    def _update(self, state: RequestRecord, stream: _Stream, up_to: int, late: bool = False) -> RequestUpdate:
        count = max(min(up_to, stream.received) - stream.sent, 0)
        tokens, stream.tokens = tuple(stream.tokens[:count]), stream.tokens[count:]
        logprobs, stream.logprobs = tuple(stream.logprobs[:count]), stream.logprobs[count:]
        stream.sent += count
        text = ""
        while stream.texts and stream.texts[0][0] <= stream.sent:
            text += stream.texts.popleft()[1]
        finished = stream.sent == stream.received and stream.finish_reason
        if finished:
            self.discard(state.request_id)
        return RequestUpdate(
            request_id=state.request_id,
            token_ids=tokens,
            text=text,
            logprobs=logprobs,
            finish_reason=finished or "",
            error=stream.error if finished else "",
            prefill_remaining=state.prefill_remaining,
            context_tokens=state.context,
            kv_blocks=0 if finished else state.kv_blocks,
            preemptions=state.preemptions,
            cached_tokens=state.cached_tokens,
            accepted_draft_tokens=0 if late else state.accepted_draft_tokens,
            draft_tokens=0 if late else state.draft_tokens,
            accept_rate=state.accept_rate,
            draft_share=state.draft_share,
            relegated=state.relegated and not late,
            kv_recomputed=state.kv_recomputed and not late,
            kv_handle=stream.kv_handle if finished else "",
        )

    def _event_without_step(self, updates: list[RequestUpdate], now_s: float) -> StepEvent:
        return StepEvent(
            step=self._last_step,
            ended_s=now_s,
            duration_s=0.0,
            predicted_s=0.0,
            updates=tuple(updates),
            free_blocks=self._free_blocks,
            batch_tokens=0,
            batch_requests=0,
        )
