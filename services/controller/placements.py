"""What is placed on one worker: whole requests, prefill halves, and what was taken back but not yet confirmed."""

from __future__ import annotations

import time

from protos.slos.v1 import worker_pb2
from scheduling.types import Admission
from services.common import clock
from services.controller.link import WorkerLink
from services.controller.mirror import ReplicaMirror
from services.controller.request import LiveRequest
from services.controller.submission import Handover, leg_id, prefill_submission, stamping, submission


class Placements:
    """Keeps the books of one worker and its mirror in step, and tells the worker of every change.

    requests and legs: by their names on the worker. leaving: names that were cancelled, with the time of that.
    """

    def __init__(self, worker_id: str, link: WorkerLink) -> None:
        """Start empty, without a mirror."""
        self.mirror: ReplicaMirror | None = None
        self.requests: dict[str, LiveRequest] = {}
        self.legs: dict[str, LiveRequest] = {}
        self.leaving: dict[str, float] = {}
        self._handles: dict[str, str] = {}
        self._worker_id = worker_id
        self._link = link

    def best_effort(self) -> list[LiveRequest]:
        """Best-effort requests that this worker produces tokens for."""
        return [request for request in self.requests.values() if request.admission is Admission.BEST_EFFORT]

    def submit(self, request: LiveRequest, first_due_s: float, handover: Handover | None = None) -> None:
        """Place a request; first_due_s: due time that the engine is given; handover: its KV comes from elsewhere."""
        assert self.mirror is not None
        request.replica = self._worker_id
        self.mirror.add(request, first_due_s, arrives=handover is not None)
        self.requests[request.wire_id] = request
        command = worker_pb2.Command(submit=submission(request, handover))
        self._link.send(command, stamping(first_due_s, request.next_due_s, request.arrival_s))

    def submit_prefill(self, request: LiveRequest, first_due_s: float, handover: Handover) -> None:
        """Let this worker compute a request's prompt for another one."""
        assert self.mirror is not None
        name = leg_id(request)
        request.prefill_replica = self._worker_id
        self.mirror.add_prefill(request, name, first_due_s)
        self.legs[name] = request
        command = worker_pb2.Command(submit=prefill_submission(request, handover))
        self._link.send(command, stamping(first_due_s, None, request.arrival_s))

    def hand_over(self, request: LiveRequest, kv_handle: str) -> None:
        """Tell the decode half of a request what its prefill half has said of the KV."""
        self._handles = {name: handle for name, handle in self._handles.items() if name in self.requests}
        if request.wire_id in self.requests:
            self._handles[request.wire_id] = kv_handle
            self._send_handle(request.wire_id)

    def _send_handle(self, wire_id: str) -> None:
        hand_over = worker_pb2.HandOver(request_id=wire_id, kv_handle=self._handles[wire_id])
        self._link.send(worker_pb2.Command(hand_over=hand_over))

    def promote(self, request: LiveRequest, first_due_s: float) -> None:
        """Make a best-effort request standard."""
        assert self.mirror is not None
        self.mirror.promote(request.wire_id)
        next_due_s = self.mirror.next_due_s(request.wire_id)

        def stamp(command: worker_pb2.Command, now_s: float) -> None:
            command.promote.ttft_remaining_us = clock.remaining_us(first_due_s, now_s)
            if next_due_s is not None:
                command.promote.next_token_remaining_us = clock.remaining_us(next_due_s, now_s)

        self._link.send(worker_pb2.Command(promote=worker_pb2.Promote(request_id=request.wire_id)), stamp)

    def cancel(self, request: LiveRequest) -> None:
        """Take a request back; its place stays counted until the worker confirms."""
        if self.requests.pop(request.wire_id, None) is not None:
            self.take_back(request.wire_id)

    def cancel_prefill(self, request: LiveRequest) -> None:
        """Take back the half of a request that computes its prompt; one that is done is ignored."""
        if self.legs.pop(leg_id(request), None) is not None:
            self.take_back(leg_id(request))

    def take_back(self, wire_id: str) -> None:
        """Have the worker drop what bears this name, whether it is ours or not."""
        self.leaving[wire_id] = time.monotonic()
        self._link.send(worker_pb2.Command(cancel=worker_pb2.CancelCommand(request_id=wire_id)))

    def gone(self, wire_id: str) -> None:
        """The worker holds this no more."""
        self.leaving.pop(wire_id, None)
        if self.mirror is not None:
            self.mirror.remove(wire_id)

    def reconcile(self, held: set[str]) -> set[str]:
        """Compare with what the worker says it holds; return the names of ours that it does not.

        What it holds for nobody is taken back.
        """
        ours = self.requests.keys() | self.legs.keys()
        for wire_id in self.leaving.keys() - held:
            self.gone(wire_id)
        for wire_id in held - ours:
            self.take_back(wire_id)
        for wire_id in self._handles.keys() & held:
            # The word may have been lost with the connection; one that was heard before is ignored.
            self._send_handle(wire_id)
        return ours - held

    def clear(self) -> tuple[list[LiveRequest], list[LiveRequest]]:
        """Take everything back; return the (requests, prefill halves) that were here, ready to go elsewhere."""
        requests, legs = list(self.requests.values()), list(self.legs.values())
        for name, request in self.requests.items():
            if self.mirror is not None:
                request.next_due_s = self.mirror.next_due_s(name)
        names = [*self.requests, *self.legs]
        self.requests.clear()
        self.legs.clear()
        for name in names:
            if self.mirror is not None:
                self.mirror.remove(name)
            # A worker that is still there would go on with it.
            self.take_back(name)
        for request in legs:
            request.prefill_replica = ""
        return requests, legs
