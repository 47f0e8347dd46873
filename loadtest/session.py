"""Plays one session against the cluster: sends its rounds, watches the tokens come, scores, and fires the events."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import gevent

from loadtest import events, text
from loadtest.load import Load, tpots_ms
from loadtest.plan import PlannedRound, PlannedSession
from loadtest.records import Call, CallFailed, OutcomeInfo, Piece, PromiseInfo, Record, Transport
from loadtest.token_times import token_times
from scheduling.scoring import score
from scheduling.types import Slo

_SEED_STEP = 100_003
"""Spreads the seeds of a run's sessions and rounds; a prime, so that they do not meet."""


def play(load: Load, session: PlannedSession, due_s: float) -> None:
    """Send every round; a round that fails ends the session. due_s: when it should start, seconds into the run."""
    load.in_flight += 1
    try:
        _rounds(load, session, due_s)
    finally:
        load.in_flight -= 1


def _rounds(load: Load, session: PlannedSession, due_s: float) -> None:
    tokens = load.tokens[session.application]
    messages: list[tuple[str, str]] = []
    resident = 0
    for index, planned in enumerate(session.rounds):
        seed = load.plan.seed * _SEED_STEP + session.number * 64 + index
        if index == 0:
            words = tokens.words(planned.prompt_tokens)
            messages.append(("user", text.prompt(session.application, words, seed)))
        else:
            gevent.sleep(planned.delay_s)
            due_s = load.now_s()
            # What the earlier rounds really took is known by now, so that errors of length do not add up.
            words = tokens.added_words(planned.prompt_tokens - resident)
            messages.append(("user", text.tool_result(words, seed)))
        answer = _Answer(load, session, planned, due_s)
        record = answer.receive(load.transport(session.number), _call(load, session, planned, messages, seed))
        load.records.append(record)
        events.attainment.fire(record=record)
        if record.error:
            return
        messages.append(("assistant", answer.text))
        resident = record.prompt_tokens + record.output_tokens


def _call(
    load: Load, session: PlannedSession, planned: PlannedRound, messages: list[tuple[str, str]], seed: int
) -> Call:
    options = load.options
    tpot_ms, thinking_tpot_ms = tpots_ms(load.target, session.application, planned.round)
    several = len(session.rounds) > 1
    return Call(
        model=load.target.model,
        messages=tuple(messages),
        max_tokens=planned.output_tokens,
        slo_class=session.application,
        seed=seed,
        tpot_ms=tpot_ms,
        thinking_tpot_ms=thinking_tpot_ms,
        round=planned.round,
        on_miss=options.on_miss,
        session_id=f"load-{load.plan.seed}-{session.number}-{int(load.started_s * 1e6)}" if several else "",
        tenant=options.tenant,
        natural_stop=options.natural_stop,
    )


@dataclass(slots=True)
class _Answer:
    """The answer to one call while it comes in."""

    load: Load
    session: PlannedSession
    planned: PlannedRound
    due_s: float
    text: str = ""
    request_id: str = ""
    promise: PromiseInfo | None = None
    outcome: OutcomeInfo | None = None
    finish_reason: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    arrivals_s: list[tuple[float, int | None, bool]] = field(default_factory=list)
    """(seconds since sending, tokens or unknown, thinking) of every piece that carried output."""

    def receive(self, transport: Transport, call: Call) -> Record:
        """Send, take everything in, return the record; never raises for what the cluster does."""
        sent_s = self.load.now_s()
        begin = time.monotonic()
        error, refused = "", False
        try:
            for piece in transport.generate(call, self.load.options.timeout_s):
                self._take(piece, time.monotonic() - begin)
            if not self.finish_reason:
                error = "the answer ended without a finish reason"
        except CallFailed as failure:
            error, refused = str(failure), failure.refused and not self.arrivals_s
        return self._record(transport.name, sent_s, error, refused)

    def _take(self, piece: Piece, at_s: float) -> None:
        if piece.promise is not None:
            if self.promise is None:
                events.promise.fire(application=self.session.application, promise=piece.promise)
            self.promise = piece.promise
        if piece.tokens is None or piece.tokens > 0:
            if not self.arrivals_s:
                events.ttft.fire(application=self.session.application, ms=at_s * 1e3)
            self.arrivals_s.append((at_s, piece.tokens, bool(piece.reasoning_text)))
        self.text += piece.text
        self.request_id = piece.request_id or self.request_id
        self.outcome = piece.outcome or self.outcome
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.prompt_tokens = piece.prompt_tokens or self.prompt_tokens
        self.output_tokens = piece.output_tokens or self.output_tokens
        self.cached_tokens = piece.cached_tokens or self.cached_tokens

    def _record(self, transport: str, sent_s: float, error: str, refused: bool) -> Record:
        times, thinking = token_times(self.arrivals_s, self.output_tokens)
        scored = None
        if self.promise is not None and self.promise.ttft_ms > 0 and not refused:
            thinking_ms = self.promise.thinking_tpot_ms
            slo = Slo(
                self.promise.ttft_ms / 1e3, self.promise.tpot_ms / 1e3, thinking_ms / 1e3 if thinking_ms else None
            )
            scored = score(0.0, times, slo, max(0, thinking - 1), complete=not error)
        if len(times) > 1:
            events.tpot.fire(application=self.session.application, ms=(times[-1] - times[0]) / (len(times) - 1) * 1e3)
        return Record(
            application=self.session.application,
            transport=transport,
            request_id=self.request_id,
            session=self.session.number,
            round=self.planned.round,
            due_s=self.due_s,
            sent_s=sent_s,
            planned_prompt_tokens=self.planned.prompt_tokens,
            planned_output_tokens=self.planned.output_tokens,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            thinking_tokens=thinking,
            token_times_s=tuple(round(t, 6) for t in times),
            exact_tokens=all(tokens is not None for _, tokens, _ in self.arrivals_s),
            finish_reason=self.finish_reason,
            error=error,
            refused=refused,
            promise=self.promise,
            outcome=self.outcome,
            client_attained=scored.attained if scored else None,
            client_attained_paper=scored.attained_paper if scored else None,
            client_ttft_ms=times[0] * 1e3 if times else None,
            client_tpot_ms=(times[-1] - times[0]) / (len(times) - 1) * 1e3 if len(times) > 1 else None,
        )
