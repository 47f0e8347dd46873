"""What becomes of a request whose replica is gone or did not take it: it goes on elsewhere with its tokens so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import grpc

from protos.slos.v1 import common_pb2, worker_pb2
from services.controller.contract import ApiError
from services.controller.metrics import Metrics
from services.controller.replica import Replica
from services.controller.request import LiveRequest
from services.controller.sampling import derived_seed

ELSEWHERE = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "ALREADY_EXISTS"})
"""Status names with which a worker says that another worker may take the request."""
_STATUS_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


class Failover:
    """Offers displaced requests to admission again, a bounded number of times."""

    def __init__(
        self,
        attempts: int,
        offer: Callable[[LiveRequest], None],
        fail: Callable[[LiveRequest, ApiError], None],
        metrics: Metrics,
    ) -> None:
        """attempts: submissions of one request at most. offer: asks for a promise. fail: ends with an error."""
        self._attempts = attempts
        self._offer = offer
        self._fail = fail
        self._metrics = metrics

    def rejected(self, replica: Replica, request: LiveRequest, rejected: worker_pb2.Rejected) -> None:
        """Try another worker, or tell the client what is wrong with the request."""
        code = _STATUS_NAMES.get(rejected.code, "INTERNAL")
        reason = f"{replica.worker_id} did not take it: {rejected.reason}"
        request.note(reason)
        if code in ELSEWHERE:
            self._again(request, reason)
        else:
            self._fail(request, ApiError(code, rejected.reason))

    def displaced(self, replica: Replica, requests: Collection[LiveRequest], reason: str) -> None:
        """Let requests go on elsewhere."""
        for request in requests:
            request.note(f"lost {replica.worker_id}: {reason}")
            self._metrics.failovers.inc()
            self._again(request, f"{replica.worker_id}: {reason}")

    def _again(self, request: LiveRequest, reason: str) -> None:
        if request.finished:
            return
        request.replica = ""
        request.attempts += 1
        if len(request.output) >= request.max_output_tokens:
            # Only the word that it has ended was lost.
            request.finish(common_pb2.FINISH_REASON_LENGTH)
        elif request.attempts >= self._attempts:
            self._fail(
                request,
                ApiError("UNAVAILABLE", f"gave up after {request.attempts} attempts; the last: {reason}", None, 2.0),
            )
        else:
            prepare(request)
            self._offer(request)


def prepare(request: LiveRequest) -> None:
    """Make a displaced request ready for its next submission.

    Greedy output goes on exactly; sampled output goes on with a seed derived from the client's, so that the numbers
    already drawn are not drawn again.
    """
    request.epoch += 1
    request.prefill_replica = ""
    request.prefilled_s = 0.0
    request.displaced_s = time.monotonic()
    sampling = request.call.sampling
    if sampling.HasField("seed") and request.output:
        request.sampling.seed = derived_seed(sampling.seed, len(request.output))
