"""The step scheduler: vLLM's scheduler, steered by a batch policy. It runs inside vLLM's engine process.

Before every step it asks the policy for a plan, lets vLLM's own schedule() carry it out (steering.py), and publishes
what came of it.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from engine.vllm import policies, waiting
from engine.vllm.messages import (
    Command,
    Configure,
    DecodeRecords,
    EngineFacts,
    Promote,
    Relegate,
    RequestRecord,
    StepRecord,
)
from engine.vllm.residents import Change, Resident
from engine.vllm.steering import SteeredScheduler
from engine.vllm.step_socket import SchedulerSocket
from scheduling.time_model import BatchShape, TimeModel

logger = logging.getLogger("slos.step_scheduler")


@dataclass(slots=True)
class _Step:
    """One scheduled step until its output is known; planned: tokens by vLLM's id, None for vLLM's own order."""

    output: Any
    started_s: float
    predicted_s: float
    plan_s: float
    overhead_s: float
    shape: BatchShape
    planned: dict[str, int] | None


class StepScheduler(SteeredScheduler):
    """vLLM's scheduler under a policy; additional_config carries the settings (engine/vllm/adapter.py)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the scheduler, then policy and socket."""
        super().__init__(*args, **kwargs)
        waiting.sleep_until_told()
        settings = self.vllm_config.additional_config
        if text := settings.get("slos_time_model") or "":
            self._model = TimeModel.from_json(text)
        self._floor: float | None = settings.get("slos_best_effort_floor")
        self._set_policy(settings.get("slos_policy") or policies.STOCK)
        self._steps: deque[_Step] = deque()
        self._step_number = 0
        self._ended_s: float | None = None
        self._departed = False
        self._free_said = self._limits.total_blocks
        self._socket = SchedulerSocket(
            settings["slos_socket"],
            EngineFacts(
                pid=os.getpid(),
                total_blocks=self._limits.total_blocks,
                block_size=self.block_size,
                max_spec_tokens=self._limits.max_spec_tokens,
            ),
        )

    # What vLLM calls.

    def add_request(self, request: Any) -> None:
        """Take a new request."""
        super().add_request(request)
        if request.request_id in self.requests and request.request_id not in self._residents.by_vllm_id:
            resident = self._residents.admit(request)
            resident.changed = True

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """End requests from outside: cancellation, or an error."""
        finished = super().finish_requests(request_ids, finished_status)
        for request in finished:
            self._forget(request.request_id)
        return finished

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule one step as planned."""
        started_s = time.monotonic()
        for command in self._socket.commands():
            self._obey(command)
        self._planned = {}
        is_planned, plan_s = self._plan(started_s)
        before_s = time.monotonic()
        running = {request.request_id for request in self.running}
        output = super().schedule(*args, **kwargs)
        if is_planned and self._is_idle_by_mistake(output):
            output = self._schedule_stock(output, *args, **kwargs)
            is_planned = False
        self._allowed = None
        scheduled_s = time.monotonic()
        self._account(output, is_planned, running, started_s, plan_s, before_s - started_s, scheduled_s)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take the tokens of a step and publish its record."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if scheduler_output.total_num_scheduled_tokens > 0:
            self._publish(scheduler_output, outputs, time.monotonic())
        elif self._pool.get_num_free_blocks() != self._free_said:
            # KV of a request that ended before has left, or a load was given up: no step would tell of it.
            now_s = time.monotonic()
            self._publish_idle(now_s, now_s)
        return outputs

    def shutdown(self) -> None:
        """Close the socket with the engine."""
        self._socket.close()
        super().shutdown()

    # Settings.

    def _obey(self, command: Command) -> None:
        if isinstance(command, Promote):
            self._residents.promote(command.request_id, command.first_token_due_s, command.next_token_due_s)
        elif isinstance(command, Relegate):
            self._residents.relegate(command.request_id)
        elif isinstance(command, Configure):
            try:
                self._configure(command)
            except (ValueError, TypeError, ImportError):
                logger.exception("settings of the step scheduler were not taken")

    def _configure(self, command: Configure) -> None:
        if command.time_model_json is not None:
            self._model = TimeModel.from_json(command.time_model_json).with_margin(self._model.margin)
        if command.time_margin is not None:
            self._model = self._model.with_margin(command.time_margin)
        if command.best_effort_floor is not None:
            self._floor = command.best_effort_floor
        if command.policy is not None or command.best_effort_floor is not None:
            self._set_policy(command.policy or self._policy_name)

    def _set_policy(self, name: str) -> None:
        self._policy_name, self._policy = name, policies.load(name, self._floor)

    # Accounting.

    def _account(
        self,
        output: Any,
        is_planned: bool,
        running: set[str],
        started_s: float,
        plan_s: float,
        before_s: float,
        scheduled_s: float,
    ) -> None:
        """Bring the table to what was scheduled, and remember the step."""
        residents = self._residents
        tokens = kv = 0
        attention = 0.0
        drafts = 0
        for vllm_id, scheduled in output.num_scheduled_tokens.items():
            resident = residents.by_vllm_id[vllm_id]
            request = resident.request
            context = request.num_computed_tokens - scheduled
            tokens += scheduled
            if resident.decoding:
                kv += context
                drafts = max(drafts, scheduled - 1)
            else:
                attention += scheduled * (context + scheduled / 2)
                if vllm_id not in running:
                    half = getattr(self.connector, "scheduler_half", None)
                    resident.cached_tokens = context if half is None else half.found_here(vllm_id, context)
                    resident.recomputed |= self._load_failed(request, context)
                residents.sync(resident)
                residents.table.kv_blocks[resident.slot] = self._blocks(vllm_id)
        self._deviations += is_planned and self._planned != output.num_scheduled_tokens
        shape = BatchShape(tokens, len(output.num_scheduled_tokens), kv, attention, drafts)
        if not tokens:
            self._ended_s = None
            if self._departed or any(r.changed for r in residents.by_vllm_id.values()):
                self._publish_idle(started_s, scheduled_s)
            return
        table_s = time.monotonic() - scheduled_s
        self._steps.append(
            _Step(
                output,
                started_s,
                self._model.duration_s(shape) / self._model.margin,
                plan_s,
                before_s + table_s,
                shape,
                planned=self._planned if is_planned else None,
            )
        )

    def _publish(self, scheduler_output: Any, outputs: Any, ended_s: float) -> None:
        """Join the step's tokens with the table and send the record."""
        step = self._steps.popleft()
        while step.output is not scheduler_output:
            step = self._steps.popleft()
        decodes, records = self._records(step, scheduler_output, outputs, ended_s)
        records += self._other_changes(scheduler_output.num_scheduled_tokens)
        shape = step.shape
        self._step_number += 1
        # While there is work, steps follow each other, and what lies between them belongs to the next one.
        busy_since_s = self._ended_s if self._ended_s is not None else step.started_s
        duration_s = ended_s - busy_since_s
        self._ended_s = ended_s if self.running else None
        self._departed = False
        self._free_said = free_blocks = self._pool.get_num_free_blocks()
        self._send(
            StepRecord(
                step=self._step_number,
                started_s=step.started_s,
                ended_s=ended_s,
                duration_s=duration_s,
                predicted_s=step.predicted_s,
                plan_s=step.plan_s,
                overhead_s=step.overhead_s + time.monotonic() - ended_s,
                free_blocks=free_blocks,
                batch_tokens=int(shape.new_tokens),
                batch_requests=int(shape.requests),
                shape=tuple(map(float, shape)),
                requests=records,
                stock=step.planned is None,
                plan_failures=self._plan_failures,
                deviations=self._deviations,
                decodes=decodes,
            )
        )

    def _records(
        self, step: _Step, scheduler_output: Any, outputs: Any, ended_s: float
    ) -> tuple[DecodeRecords | None, list[RequestRecord]]:
        """Account for what the step gave the requests that it computed: single decodes in bulk, others one by one."""
        residents, planned = self._residents, step.planned or {}
        usual = 0 if step.planned is None else 1
        given = {o.request_id: o for out in outputs.values() for o in out.outputs}
        drafts = scheduler_output.scheduled_spec_decode_tokens
        decodes: list[Resident] = []
        decoded: list[int] = []
        changes: list[Change] = []
        for vllm_id, scheduled in scheduler_output.num_scheduled_tokens.items():
            resident = residents.by_vllm_id.get(vllm_id)
            if resident is None:
                continue
            output = given.get(vllm_id)
            tokens = () if output is None else output.new_token_ids
            asked = planned.get(vllm_id, 0)
            if (
                scheduled == len(tokens) == 1
                and asked == usual
                and resident.steady
                and output.finish_reason is None
                and vllm_id not in drafts
            ):
                decodes.append(resident)
                decoded.append(tokens[0])
                continue
            drafted = len(drafts.get(vllm_id, ()))
            accepted = max(len(tokens) - 1, 0) if drafted else 0
            if tokens:
                residents.tokens(resident, list(tokens), ended_s)
            residents.drafts(resident, drafted, accepted)
            gone = resident.request.is_finished()
            held = 0 if gone else self._blocks(vllm_id)
            changes.append(Change(resident, held, list(tokens), asked, scheduled, drafted, accepted, gone))
        blocks = [self._blocks(resident.request.request_id) for resident in decodes]
        steady = residents.one_token_each(decodes, decoded, blocks, usual)
        records = residents.records(changes)
        for change in changes:
            if change.gone:
                residents.remove(change.resident.request.request_id)
        return steady, records

    def _send(self, record: StepRecord) -> None:
        self._socket.send(record)

    def _publish_idle(self, started_s: float, ended_s: float) -> None:
        """Tell of requests that came, left or changed without a step."""
        self._departed = False
        self._step_number += 1
        self._free_said = self._pool.get_num_free_blocks()
        self._send(
            StepRecord(
                step=self._step_number,
                started_s=started_s,
                ended_s=ended_s,
                duration_s=0.0,
                predicted_s=0.0,
                plan_s=0.0,
                overhead_s=0.0,
                free_blocks=self._free_said,
                batch_tokens=0,
                batch_requests=0,
                shape=(0.0, 0.0, 0.0, 0.0, 0.0),
                requests=self._other_changes({}),
                plan_failures=self._plan_failures,
                deviations=self._deviations,
            )
        )

    def _other_changes(self, scheduled: dict[str, int]) -> list[RequestRecord]:
        """Records of requests that changed without computing: new, evicted, relegated, cancelled."""
        changed = [
            Change(resident, self._blocks(vllm_id))
            for vllm_id, resident in self._residents.by_vllm_id.items()
            if resident.changed and vllm_id not in scheduled
        ]
        return self._residents.records(changed)

    def _forget(self, vllm_id: str) -> None:
        self._departed |= self._residents.remove(vllm_id) is not None
