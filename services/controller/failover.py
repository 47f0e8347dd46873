"""What becomes of a request whose replica is gone: it goes on elsewhere with its prompt and the tokens so far."""

from __future__ import annotations

import time

from protos.slos.v1 import common_pb2
from services.controller.request import LiveRequest
from services.controller.sampling import derived_seed


def prepare(request: LiveRequest, seed: int | None) -> None:
    """Make a displaced request ready for its next submission.

    Greedy output goes on exactly; sampled output goes on with a seed derived from the client's, so that the numbers
    already drawn are not drawn again. seed: the client's own; None when it gave none.
    """
    request.replica = ""
    request.attempts += 1
    request.epoch += 1
    request.displaced_s = time.monotonic()
    if seed is not None and request.output:
        request.sampling.seed = derived_seed(seed, len(request.output))


def already_complete(request: LiveRequest) -> common_pb2.FinishReason:
    """Finish reason of a request that had produced all its tokens when its replica went; 0 when it must go on."""
    if len(request.output) >= request.max_output_tokens:
        return common_pb2.FINISH_REASON_LENGTH
    return common_pb2.FINISH_REASON_UNSPECIFIED
