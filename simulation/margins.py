"""Margins that simulated replicas learn, as the controller does: from every step and every promise that ended."""

from __future__ import annotations

from scheduling.margin_in_force import MarginInForce
from scheduling.time_model import BatchShape, TimeModel
from simulation import engine_step
from simulation.replica import Replica

PRECISION_TARGET = 0.99
"""Share of promises to keep where no class says."""


class Margins:
    """One margin per replica; each begins with the margin of an engine that has shown nothing yet."""

    def __init__(self, model: TimeModel, replicas: list[Replica], precision_target: float) -> None:
        """model: what the planner believes, without a margin; precision_target: share of promises to keep."""
        self._model = model
        self._replicas = replicas
        self._margins = [MarginInForce(precision_target) for _ in replicas]
        self._seen = [_Seen(replica) for replica in replicas]
        for replica, margin in zip(replicas, self._margins, strict=True):
            margin.attached(model)
            self._use(replica.index)

    def stepped(self, replica: Replica, began_s: float) -> None:
        """Learn from the step under way; of steps that were run in one go only their count is known, so nothing."""
        shape = self._seen[replica.index].shape_since(replica)
        if shape is None:
            return
        predicted_s = (replica.expected_end_s - began_s) / replica.planner_model.margin
        self._margins[replica.index].measured(shape, predicted_s, replica.busy_until_s - began_s)
        self._use(replica.index)

    def promise_ended(self, replica: int, kept: bool) -> None:
        """Learn from a promise that a replica had its part in."""
        self._margins[replica].promise_ended(kept)
        self._use(replica)

    def _use(self, index: int) -> None:
        if self._margins[index].take():
            self._replicas[index].planner_model = self._model.with_margin(self._margins[index].in_force)


class _Seen:
    """Counters of a replica at its last step."""

    __slots__ = ("_decodes", "_prefill_tokens", "_steps", "_tokens")

    def __init__(self, replica: Replica) -> None:
        self._take(replica)

    def _take(self, replica: Replica) -> None:
        counters = replica.counters
        self._steps = replica.steps
        self._tokens = int(counters[engine_step.NEW_TOKENS])
        self._decodes = int(counters[engine_step.DECODES])
        self._prefill_tokens = int(counters[engine_step.PREFILL_TOKENS])

    def shape_since(self, replica: Replica) -> BatchShape | None:
        """What a single step has computed; None where there were several."""
        steps, tokens = self._steps, self._tokens
        decodes, prefill_tokens = self._decodes, self._prefill_tokens
        self._take(replica)
        if self._steps - steps != 1:
            return None
        # Chunks are not counted; that there was one is what tells the kinds of batches apart.
        chunks = int(self._prefill_tokens > prefill_tokens)
        return BatchShape(self._tokens - tokens, self._decodes - decodes + chunks)
