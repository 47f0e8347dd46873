"""What is written down about requests: journal, statistics, metrics and output lengths."""

from __future__ import annotations

import time

from protos.slos.v1 import common_pb2
from scheduling.lengths import LengthEstimator
from services.controller.contract import ApiError
from services.controller.journal import JournalWriter
from services.controller.ledger import Ledger, closing_of, is_complete, outcome_of
from services.controller.metrics import Metrics
from services.controller.relay import RelayTimes
from services.controller.request import LiveRequest


class Accounts:
    """Told of everything that happens to a request; implements AdmissionListener."""

    def __init__(self, journal: JournalWriter, metrics: Metrics) -> None:
        """Start with empty statistics."""
        self.ledger = Ledger()
        self.lengths = LengthEstimator()
        self.relay_times = RelayTimes()
        self._journal = journal
        self._metrics = metrics

    def decided(self, request: LiveRequest, seconds: float) -> None:
        """A request got its first answer."""
        self._metrics.admission.observe(seconds)
        self._metrics.admitted.labels(request.slo_class, request.admission).inc()

    def placed(self, request: LiveRequest) -> None:
        """A request went to a replica."""
        self._journal.opened(request)
        self._journal.unqueued(request)

    def promoted(self, request: LiveRequest) -> None:
        """A best-effort request was promised something after all."""
        self._metrics.promotions.inc()

    def queued(self, request: LiveRequest) -> None:
        """A request waits without a promise."""
        self._journal.opened(request)
        self._journal.queued(request)

    def refused(self, request: LiveRequest, error: ApiError) -> None:
        """A request is not served."""
        self._metrics.refused.labels(error.code).inc()
        request.finish(common_pb2.FINISH_REASON_ERROR, error.message, error.code)
        request.outbox.fail(error)

    def handed_over(self, request: LiveRequest, tokens: int) -> None:
        """A message with this many tokens goes to the front door now."""
        if not tokens:
            return
        now_s = time.monotonic()
        times = request.token_times_s
        ttft, inter_token = self._metrics.token_histograms(request.slo_class)
        if times:
            inter_token.observe((now_s - times[-1]) / tokens)
        else:
            ttft.observe(now_s - request.arrival_s)
        self._metrics.generation_tokens.inc(tokens)
        times.extend([now_s] * tokens)
        produced_s = request.outbox.take_produced_s()
        if produced_s is not None:
            self.relay_times.observe(now_s - produced_s)

    def ended(self, request: LiveRequest) -> None:
        """Nobody reads a request any more, and it is finished."""
        if request.outcome is None:
            request.outcome = outcome_of(request)
        if is_complete(request):
            self.lengths.observe(
                request.slo_class,
                len(request.output),
                request.tenant,
                request.prompt_tokens,
                cut_off=request.finish_reason == common_pb2.FINISH_REASON_LENGTH,
            )
        self._metrics.ended(request, request.outcome)
        self.ledger.ended(request)
        self._journal.unqueued(request)
        self._journal.closed(request, closing_of(request))
