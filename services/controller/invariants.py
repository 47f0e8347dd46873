"""What must hold between the books of the controller at any moment between two events."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from services.controller.admission import AdmissionLoop
from services.controller.best_effort import BestEffortQueue
from services.controller.replicas import ReplicaManager
from services.controller.request import LiveRequest

UNCONFIRMED_S = 30.0
"""A worker confirms a cancel within a step or two; one that takes this long has forgotten it."""


def problems(
    live: Mapping[str, LiveRequest],
    admission: AdmissionLoop,
    queue: BestEffortQueue,
    replicas: ReplicaManager,
    now_s: float | None = None,
) -> list[str]:
    """Return every broken invariant as a sentence; empty when all is well."""
    now_s = time.monotonic() if now_s is None else now_s
    found: list[str] = []
    places: Counter[str] = Counter()
    for request in (*admission.pending(), *queue):
        places[request.request_id] += 1
        if live.get(request.request_id) is not request:
            found.append(f"request {request.request_id} waits, but is not live")
    for replica in replicas:
        for wire_id, request in replica.placed.requests.items():
            places[request.request_id] += 1
            if live.get(request.request_id) is not request:
                found.append(f"request {request.request_id} is on {replica.worker_id}, but is not live")
            if request.wire_id != wire_id or request.replica != replica.worker_id:
                found.append(f"request {request.request_id} is on {replica.worker_id} under another submission's name")
        for name, request in replica.placed.legs.items():
            if live.get(request.request_id) is not request or request.prefill_replica != replica.worker_id:
                found.append(f"{name} computes a prompt on {replica.worker_id} for nobody")
        if replica.mirror is not None:
            table, placed = replica.mirror.table, replica.placed
            resident = {table.request_id(int(slot)) for slot in table.slots()}
            known = placed.requests.keys() | placed.legs.keys() | placed.leaving.keys()
            found += [f"{name} has a slot in the mirror of {replica.worker_id} for nobody" for name in resident - known]
            missing = placed.requests.keys() - resident
            found += [f"{name} is on {replica.worker_id} without a slot in its mirror" for name in missing]
        if replica.link.connected:
            late = [name for name, sent_s in replica.placed.leaving.items() if now_s - sent_s > UNCONFIRMED_S]
            found += [f"{replica.worker_id} has not confirmed the end of {name}" for name in late]
    for request_id, request in live.items():
        if not request.finished and places[request_id] != 1:
            found.append(f"request {request_id} is in {places[request_id]} places, not in one")
        if request.finished and places[request_id]:
            found.append(f"request {request_id} has ended, but still takes a place")
    return found
