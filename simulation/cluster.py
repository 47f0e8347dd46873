"""The simulated cluster: a queue of events on virtual time, and what they act on."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace
from typing import Protocol

import numpy as np

from scheduling import registry
from scheduling.policy import Policy
from scheduling.request_table import FloatArray
from simulation.config import ClusterConfig, Lengths
from simulation.controller import Controller
from simulation.events.arrival import Arrival
from simulation.events.replica_down import ReplicaDown
from simulation.events.step_end import StepEnd
from simulation.margins import PRECISION_TARGET, Margins
from simulation.noise import StepNoise
from simulation.profiles import Profile
from simulation.replica import Replica, Undisturbed
from simulation.requests import IN_TRANSIT, LEAVING, NOWHERE, Requests
from simulation.transfers import Transfers
from simulation.workload import Workload

LATE_CHECK_S = 5.0
REESTIMATE_EVERY_STEPS = 16


class Event(Protocol):
    """Something that happens at a time; one small file per kind in simulation/events."""

    def apply(self, cluster: Cluster, now_s: float) -> None:
        """Change the cluster."""
        ...


class Cluster:
    """Replicas, controller, transfers and the event queue; `run` plays a workload to its end."""

    def __init__(
        self,
        workload: Workload,
        profile: Profile,
        config: ClusterConfig,
        factors: FloatArray | None = None,
    ) -> None:
        """Build an idle cluster.

        factors: what step times are multiplied by, one drawn for each, in place of the configuration's noise.
        """
        self.workload = workload
        self.profile = profile
        self.config = config
        policy: Policy = registry.get(
            config.policy, routing=config.routing, explains=False, **dict(config.policy_options)
        )
        self.policy = replace(policy, admits_all=True) if config.admit_all else policy
        self.requests = Requests.of(workload, profile, config.relay_s)
        model = profile.time_model.scaled(1.0 + config.time_error).with_margin(config.margin)
        self.replicas = [
            Replica(
                index,
                self._role(index),
                profile,
                model,
                StepNoise(config.noise, (config.seed, index), factors),
                config.seed,
                config.speculation,
            )
            for index in range(config.replicas)
        ]
        self.transfers = Transfers(self)
        self.controller = Controller(
            self.policy, self.requests, self.replicas, self.transfers, config.lengths, config.prefix_cache
        )
        targets = [slo_class.precision_target for slo_class in workload.classes]
        learns = config.learn_margin and not self.policy.admits_all
        self._margins = Margins(model, self.replicas, max(targets, default=PRECISION_TARGET)) if learns else None
        self.now_s = 0.0
        self.stopped_early = False
        self.events = 0
        self._queue: list[tuple[float, int, Event]] = []
        self._sequence = itertools.count()
        self._unfinished = len(workload)
        self._step_ends: list[tuple[float, int, Event]] = []
        self._rounds = bool((workload.next_row >= 0).any())
        self._next_late_check_s = LATE_CHECK_S
        self.one_by_one = False
        """Every step is an event of its own; results are the same."""

    def _role(self, index: int) -> str:
        if self.config.prefill_replicas == 0:
            return "both"
        if index >= self.config.replicas - self.config.colocated_replicas:
            return "both"
        return "prefill" if index < self.config.prefill_replicas else "decode"

    def schedule(self, at_s: float, event: Event) -> None:
        """Let an event happen; ValueError when that moment is past."""
        self._schedule(self._queue, at_s, event)

    def _schedule(self, queue: list[tuple[float, int, Event]], at_s: float, event: Event) -> None:
        if at_s < self.now_s:
            raise ValueError(f"an event at {at_s} s, but it is {self.now_s} s already")
        heapq.heappush(queue, (at_s, next(self._sequence), event))

    def run(self) -> None:
        """Play until every request has finished (or enough have missed, where the configuration says so)."""
        for row in np.flatnonzero(~np.isnan(self.workload.arrival_s)):
            self.schedule(float(self.workload.arrival_s[row]), Arrival(int(row)))
        for failure in self.config.failures:
            self.schedule(failure.at_s, ReplicaDown(failure.replica, failure.down_s))
        queue, step_ends = self._queue, self._step_ends
        while (queue or step_ends) and self._unfinished:
            steps_first = not queue or (step_ends and step_ends[0] < queue[0])
            at_s, _, event = heapq.heappop(step_ends if steps_first else queue)
            self.now_s = at_s
            self.events += 1
            event.apply(self, at_s)
            if at_s >= self._next_late_check_s and self._too_late(at_s):
                self.stopped_early = True
                return
        if self._unfinished:
            raise RuntimeError(
                f"policy {self.policy.name!r} left {self._unfinished} requests unserved with nothing left to happen"
            )

    # ---- what events do

    def boundary(self, now_s: float) -> None:
        """Decide new requests and set every idle replica to work."""
        self.controller.decide(now_s)
        for replica in self.replicas:
            if replica.step is None and replica.alive and len(replica.table):
                self._begin_step(replica, now_s)

    def any_idle(self) -> bool:
        """Some replica that takes prompts has nothing to do."""
        takes_all = self.transfers.pairs
        return any(r.alive and not r.busy and (takes_all or r.role != "decode") for r in self.replicas)

    def lose(self, index: int) -> None:
        """A replica dies; its requests are offered again with the tokens that had reached the controller."""
        for row in self.replicas[index].lose():
            self.requests.replica[row] = NOWHERE
            self.controller.offer(row)

    def finish(self, row: int, replica: int, now_s: float) -> None:
        """The last token of a request is out, on this replica; its session goes on after the tool's delay."""
        self.requests.finished[row] = True
        self._unfinished -= 1
        if self._margins is not None and self.requests.promised[row]:
            self._margins.promise_ended(replica, not self.requests.late[row])
        self.controller.finished(row, self.workload.classes[self.workload.class_index[row]].name)
        following = int(self.workload.next_row[row])
        if following >= 0:
            arrives_s = now_s + float(self.workload.tool_delay_s[following])
            self.requests.arrival_s[following] = arrives_s
            self.schedule(arrives_s, Arrival(following))

    def _begin_step(self, replica: Replica, now_s: float) -> None:
        begun = replica.begin_step(now_s, self.policy.batching, self.requests, self._leave_to(replica, now_s))
        for slot in replica.given_up():
            row = replica.row_of(slot)
            replica.release(slot)
            self.transfers.forget(row)
            self.controller.given_back(row)
        if begun is None:
            return
        step, finished = begun
        if self._margins is not None:
            self._margins.stepped(replica, now_s)
        for slot in finished:
            self._leave(replica, slot)
        if replica.role == "prefill":
            replica.step = step = self.transfers.collect(replica, step)
        if self.config.lengths is Lengths.QUANTILE and replica.steps % REESTIMATE_EVERY_STEPS == 0:
            self._reestimate(replica)
        self._schedule(self._step_ends, step.ends_s, StepEnd(step))

    def _leave_to(self, replica: Replica, now_s: float) -> Undisturbed:
        """What a replica may do before anybody has to look."""
        if self.one_by_one:
            return Undisturbed(now_s, in_one_call=False)
        room_below = self.controller.room_below(replica)
        if self._margins is not None or (room_below and len(self.replicas) > 1):
            return Undisturbed(now_s)
        until_s = min(self._undisturbed_until(replica, now_s), self.controller.next_retry_s)
        estimated = REESTIMATE_EVERY_STEPS if self.config.lengths is Lengths.QUANTILE else 0
        return Undisturbed(until_s, room_below, estimated, self.policy.repeats_decodes)

    def _undisturbed_until(self, replica: Replica, now_s: float) -> float:
        """Until when no replica can learn of anything but its own steps; now where steps must go one by one."""
        until_s = self._queue[0][0] if self._queue else np.inf
        for other in self.replicas:
            if other is replica or not other.alive or not (other.busy or len(other.table)):
                continue
            ends_s = other.busy_until_s if other.busy else now_s
            if self.config.prefill_replicas or other.may_give_back:
                until_s = min(until_s, ends_s)  # by a prompt that it hands over, or a request that it gives up
            elif self._rounds:
                until_s = min(until_s, ends_s + other.next_round_after_s(self.workload))
        return until_s

    def _leave(self, replica: Replica, slot: int) -> None:
        row = replica.row_of(slot)
        self.requests.preemptions[row] += replica.table.preemptions[slot]
        context = int(replica.table.context[slot])
        replica.release(slot)
        self.requests.replica[row] = LEAVING
        self.remember(replica, row, context)

    def remember(self, replica: Replica, row: int, context: int) -> None:
        """Keep the KV of a request that has left a replica for its session's next round."""
        if self.config.prefix_cache and self.workload.next_row[row] >= 0:
            replica.cache.put(int(self.workload.session[row]), context // replica.limits.block_size)
            replica.cache.shrink_to(replica.free_blocks)

    def _reestimate(self, replica: Replica) -> None:
        """Correct the estimates of outputs that turn out longer than expected; a prefill half has none."""
        table = replica.table
        for slot in np.flatnonzero(table.active & (table.remaining_output <= 1)):
            if self.requests.replica[replica.row_of(int(slot))] == IN_TRANSIT:
                continue
            generated = int(table.generated[slot])
            table.remaining_output[slot] = self.controller.candidates.expected_output(
                replica.row_of(int(slot)), generated
            )

    def _too_late(self, now_s: float) -> bool:
        self._next_late_check_s = now_s + LATE_CHECK_S
        limit = self.config.stop_when_late
        if limit >= 1.0:
            return False
        requests = self.requests
        overdue = (requests.produced == 0) & (requests.arrival_s + requests.ttft_s < now_s)
        sessions = np.unique(self.workload.session[requests.late | overdue])
        return len(sessions) > limit * self.workload.sessions
