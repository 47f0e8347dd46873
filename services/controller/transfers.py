"""How long KV takes between two workers, learned from hand-overs that have happened."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable

from scheduling.pairs import TransferModel
from services.controller.request import LiveRequest
from services.controller.submission import Handover
from services.controller.targets import Target

_KEPT = 50
_QUANTILE = 0.9
REMEMBERED_S = 10.0
"""A pair that was slow gets no promises, so nothing new would be learned of it: what was measured has to expire."""
_FIRST = TransferModel()


class TransferTimes:
    """A transfer model per pair: the shipped guess, scaled to what was measured in the last seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Know nothing yet."""
        self._clock = clock
        self._ratios: dict[tuple[str, str], deque[tuple[float, float]]] = {}

    def handover(self, request: LiveRequest, target: Target) -> Handover:
        """Name a new transfer for a request; no name is used twice, so nothing old can be taken for it."""
        assert target.prefill is not None
        return Handover(
            transfer_id=uuid.uuid4().hex,
            generation=request.epoch + 1,
            prefill_worker=target.prefill.worker_id,
            prefill_address=target.prefill.info.kv_address,
            decode_worker=target.decode.worker_id,
            decode_address=target.decode.info.kv_address,
        )

    def observe(self, prefill: str, decode: str, tokens: int, seconds: float) -> None:
        """Take the measured time between the end of a prefill and the step that used its KV."""
        ratios = self._ratios.setdefault((prefill, decode), deque(maxlen=_KEPT))
        ratios.append((self._clock(), max(seconds, 1e-4) / _FIRST.duration_s(tokens)))

    def model(self, prefill: str, decode: str) -> TransferModel:
        """Return the model of a pair; most measured hand-overs were faster than it says."""
        oldest_s = self._clock() - REMEMBERED_S
        ordered = sorted(ratio for at_s, ratio in self._ratios.get((prefill, decode), ()) if at_s >= oldest_s)
        if not ordered:
            return _FIRST
        return _FIRST.scaled(ordered[min(len(ordered) - 1, int(_QUANTILE * len(ordered)))])
