"""From step events to clients: moves the mirror, and puts every token into the outbox of its request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from protos.slos.v1 import client_pb2, worker_pb2
from scheduling.types import Admission
from services.controller.metrics import Metrics
from services.controller.replica import Replica
from services.controller.request import LiveRequest

GIVEN_UP = "it cannot be in time there beside what is promised"
RELEGATED = "its deadline had passed, so the engine took the promise back"
_WINDOW = 512
_EVERY = 64


class RelayTimes:
    """How long tokens take from the end of their engine step to the front door."""

    def __init__(self, first_guess_s: float = 0.01, limit_s: float = 1.0) -> None:
        """Start from a guess; no stall of this process makes more than limit_s of it."""
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._limit_s = limit_s
        self._since = 0
        self.p50_s = self.p99_s = first_guess_s

    def observe(self, seconds: float) -> None:
        """Take one measured time."""
        self._recent.append(seconds)
        self._since += 1
        if self._since >= _EVERY:
            self._since = 0
            ordered = sorted(self._recent)
            self.p50_s, self.p99_s = (
                min(self._limit_s, max(0.0, ordered[int(share * (len(ordered) - 1))])) for share in (0.5, 0.99)
            )


class Relay:
    """Hands tokens out; at most one wake-up per request and step."""

    def __init__(
        self,
        remaining: Callable[[LiveRequest], int],
        touched: Callable[[LiveRequest], None],
        transferred: Callable[[LiveRequest, float], None],
        given_back: Callable[[LiveRequest], None],
        metrics: Metrics,
    ) -> None:
        """remaining: a new estimate of the output still to come. touched: told of every request with new tokens.

        transferred: told of a request whose KV came from another worker, with the seconds that it took. given_back:
        takes a hopeful request back that its replica gave up before it began.
        """
        self._given_back = given_back
        self._transferred = transferred
        self._metrics = metrics
        self._remaining = remaining
        self._touched = touched

    def stepped(self, replica: Replica, step: worker_pb2.Step, ended_s: float) -> bool:
        """Hand out one step's tokens; True when a request has ended or moved down, which makes room for others."""
        mirror = replica.mirror
        assert mirror is not None
        room = False
        for update in step.requests:
            request = replica.placed.requests.get(update.request_id)
            if request is None:  # a prefill half, or taken back and not confirmed yet
                mirror.apply(update, ended_s)
            else:
                self._deliver(replica, request, update, ended_s, step.duration_us / 1e6)
            hoped = request or replica.placed.legs.get(update.request_id)
            if update.relegated and hoped is not None and hoped.hopeful:
                self._give_up(replica, hoped, update)
            room = room or bool(update.finish_reason) or update.relegated
        return room

    def _deliver(
        self,
        replica: Replica,
        request: LiveRequest,
        update: worker_pb2.RequestStep,
        ended_s: float,
        duration_s: float,
    ) -> None:
        mirror = replica.mirror
        assert mirror is not None
        tokens = update.token_ids
        if tokens and not request.output:
            mirror.prefilled(request, update.cached_tokens)
            if request.prefill_replica and not (request.kv_recomputed or update.kv_recomputed):
                self._metrics.kv_handovers.inc()
                if request.prefilled_s:
                    self._transferred(request, ended_s - duration_s - request.prefilled_s)
        end_index = _thinking_end(request, tokens) if tokens else -1
        late = mirror.apply(update, ended_s, end_index)
        request.late = request.late or late
        if update.cached_tokens:
            request.cached_tokens = update.cached_tokens
        if tokens or update.text:
            message = request.outbox.open(ended_s)
            if tokens:
                message.token_ids.extend(tokens)
                request.output.extend(tokens)
                self._touched(request)
            if update.text:
                self._text(request, message, update.text)
            if update.logprobs:
                message.logprobs.extend(update.logprobs)
        if update.draft_tokens:
            self._metrics.drafts.labels(request.slo_class).inc(update.draft_tokens)
            self._metrics.accepted_drafts.labels(request.slo_class).inc(update.accepted_draft_tokens)
        if update.kv_recomputed and not request.kv_recomputed:
            request.kv_recomputed = True
            request.note(f"its KV did not arrive: {replica.worker_id} computes the prompt")
            self._metrics.kv_recomputed.inc()
        if update.relegated and request.admission is Admission.STANDARD:
            request.note(f"relegated on {replica.worker_id}: {RELEGATED}")
            self._metrics.relegations.inc()
            request.became(Admission.BEST_EFFORT, RELEGATED)
            request.late = True
        if update.finish_reason:
            mirror.ended(request)
            request.finish(update.finish_reason, update.error)
        elif tokens and len(request.output) >= request.expected_output_tokens:
            remaining = self._remaining(request)
            request.expected_output_tokens = len(request.output) + remaining
            mirror.expect_more(update.request_id, remaining)

    def _give_up(self, replica: Replica, request: LiveRequest, update: worker_pb2.RequestStep) -> None:
        request.note(f"no hope left on {replica.worker_id}: {GIVEN_UP}")
        request.hopeful = False
        begun = update.context_tokens or update.preemptions or request.output
        if not begun and not update.finish_reason and not request.finished:
            self._given_back(request)

    @staticmethod
    def _text(request: LiveRequest, message: client_pb2.GenerateResponse, text: str) -> None:
        request.text_chars += len(text)
        if request.splitter is None:
            message.text += text
            return
        thinking, answer = request.splitter.push(text)
        if thinking:
            message.reasoning_text += thinking
        if answer:
            message.text += answer


def _thinking_end(request: LiveRequest, tokens: Iterable[int]) -> int:
    """Index of the marker that ends the thinking stage among new tokens, counting them; -1 when it is not there."""
    if request.thinking_end_token_id is None or request.thinking_done:
        return -1
    for index, token in enumerate(tokens):
        if token == request.thinking_end_token_id:
            request.thinking_done = True
            # Counted after the first output token, the marker included.
            request.thinking_tokens = len(request.output) + index
            return index
    return -1
