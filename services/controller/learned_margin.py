"""The safety factor on one replica's predicted step times, learned from the steps that its events tell of."""

from __future__ import annotations

from protos.slos.v1 import worker_pb2
from scheduling.margin_in_force import MarginInForce
from scheduling.time_model import BatchShape


class LearnedMargin(MarginInForce):
    """`in_force` is what worker and controller use now."""

    def stepped(self, step: worker_pb2.Step) -> None:
        """Learn from one step, if there was a prediction for it."""
        # The rest of the shape does not cross the wire: these two tell the kinds of batches apart.
        shape = BatchShape(step.batch_tokens, step.batch_requests)
        self.measured(shape, step.predicted_us / 1e6, step.duration_us / 1e6)
