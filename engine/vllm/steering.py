"""vLLM's scheduler with a plan imposed on it: which requests take part in a step, in which order, with how many tokens.

The plan goes in through one hook that vLLM calls for every request with the tokens it is about to compute: the answer
caps them, and zero sits the request out. Queues are ordered so that vLLM looks at planned requests first and evicts
best-effort ones first. vLLM keeps all of its own bookkeeping; a plan that it cannot run makes a smaller step, never a
wrong one.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import RequestStatus

from engine.vllm import policies
from engine.vllm.residents import Resident, Residents, request_facts
from scheduling.policy import BatchPlan, BatchPolicy
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits

logger = logging.getLogger("slos.step_scheduler")

UNPROFILED = TimeModel(((0.02, 2e-3, 0.0, 0.0, 0.0, 0.0),), source="assumed: no profile has been run")
ANY = 1 << 30
"""Allowance of a request whose tokens are not capped."""

PREFIX_LOOKUPS = 8
"""Waiting requests whose prefix-cache hit is looked up again before every step; others once, when they come."""

HOOKS = (
    "_reserve_prefill_lookahead",
    "_preempt_request",
    "_handle_blocked_waiting_request",
    "_is_blocked_waiting_status",
    "_holds_kv_blocks",
)


class SteeredScheduler(AsyncScheduler):  # type: ignore[misc]
    """Keeps the planner's table of vLLM's requests, asks a policy for plans and imposes them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build vLLM's scheduler, then our table."""
        super().__init__(*args, **kwargs)
        missing = [name for name in HOOKS if not hasattr(self, name)]
        if missing:
            raise RuntimeError(f"this vLLM lacks {', '.join(missing)}; the step scheduler is written for vLLM 0.32")
        self._residents = Residents(2 * self.max_num_running_reqs, speculates=self.num_spec_tokens > 0)
        self._pool = self.kv_cache_manager.block_pool
        self._managers = self.kv_cache_manager.coordinator.single_type_managers
        self._limits = EngineLimits(
            max_batch_tokens=self.max_num_scheduled_tokens,
            max_batch_requests=self.max_num_running_reqs,
            block_size=self.block_size,
            total_blocks=self._pool.get_num_free_blocks(),
            max_model_len=self.max_model_len,
            max_spec_tokens=1 + self.num_spec_tokens,
        )
        self._model = UNPROFILED
        self._policy_name = policies.STOCK
        self._policy: BatchPolicy | None = None
        # By vLLM's request id, for the step that is being scheduled; None: vLLM's own order.
        self._allowed: dict[str, int] | None = None
        self._planned: dict[str, int] = {}
        self._plan_failures = 0
        self._deviations = 0

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self._residents.preempted(request.request_id)
        if self._allowed is not None:
            self._allowed[request.request_id] = 0

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        """Let a request out of its wait; a resumed one's grammar first takes its prior output."""
        waited_for_grammar = request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        ready: bool = super()._handle_blocked_waiting_request(request)
        if ready and waited_for_grammar:
            prior = request_facts(request).prior_tokens
            if prior and not request.structured_output_request.grammar.accept_tokens(
                request.request_id, request.prompt_token_ids[-prior:]
            ):
                logger.error("the grammar of %s refuses the request's own prior output", request.request_id)
        return ready

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Cap the tokens that vLLM is about to compute for a request; 0 leaves it out of the step."""
        if self.num_prefill_lookahead:
            num_new_tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if self._allowed is None:
            return num_new_tokens
        return min(num_new_tokens, self._allowed.get(request.request_id, 0))

    def _plan(self, now_s: float) -> tuple[bool, float]:
        """Ask the policy and impose its plan; False means vLLM's own order for this step. Also the policy's time."""
        if self._policy is None or not self._residents.by_slot:
            return False, 0.0
        table = self._residents.table
        self._residents.drafts_at_hand()
        hidden = self._prepare_waiting()
        for slot in hidden:
            table.active[slot] = False
        plan_s = 0.0
        try:
            plan = self._policy.plan(now_s, table, self._pool.get_num_free_blocks(), self._model, self._limits)
            plan_s = time.monotonic() - now_s
            return self._steer(plan), plan_s
        except Exception:
            # The engine must outlive any policy: vLLM's own order serves this step.
            self._plan_failures += 1
            logger.exception("policy %r failed; vLLM schedules this step by itself", self._policy_name)
        finally:
            for slot in hidden:
                table.active[slot] = True
        return False, plan_s

    def _prepare_waiting(self) -> list[int]:
        """Bring waiting requests up to date; slots of those that cannot run yet whatever is planned."""
        hidden = []
        for queue in (self.kv_holding_waiting, self.waiting):
            for place, request in enumerate(queue):
                resident = self._residents.by_vllm_id.get(request.request_id)
                if resident is None:
                    continue
                if self._is_blocked(request) or self._awaits_load(request):
                    hidden.append(resident.slot)
                elif queue is self.kv_holding_waiting:
                    self._residents.sync(resident)
                    self._residents.table.kv_blocks[resident.slot] = self._blocks(request.request_id)
                elif place < PREFIX_LOOKUPS or resident.changed:
                    self._look_up_prefix(resident)
        return hidden

    def _is_blocked(self, request: Any) -> bool:
        """Whether a request waits for a grammar or for remote KV; one that has it becomes a plain waiting one."""
        return self._is_blocked_waiting_status(request.status) and not self._handle_blocked_waiting_request(request)

    def _awaits_load(self, request: Any) -> bool:
        """Whether a connector is to be asked for the request's KV before anything is computed."""
        params = request.kv_transfer_params
        return (
            self.connector is not None
            and bool(params)
            and not params.get("producer", False)
            and request.num_computed_tokens == 0
            and request.num_preemptions == 0
        )

    def _load_failed(self, request: Any, context: int) -> bool:
        """Whether a request that was to take its KV from a peer computes it here after all."""
        params = request.kv_transfer_params
        return bool(params) and not params.get("producer", False) and request.num_tokens - context > self.block_size

    def _look_up_prefix(self, resident: Resident) -> None:
        """Tell the planner what the prefix cache would save, so that planned chunks are the ones that run."""
        request = resident.request
        if request.num_computed_tokens == 0:
            _, cached, *_ = self.kv_cache_manager.get_computed_blocks(request)
            resident.cached_tokens = cached
            self._residents.table.prefill_remaining[resident.slot] = request.num_tokens - cached

    def _steer(self, plan: BatchPlan) -> bool:
        """Impose a plan on the next call of vLLM's schedule(); False when there is nothing in it.

        What may be wrong with a plan shows before anything is changed.
        """
        by_slot = self._residents.by_slot
        decodes = [
            (by_slot[slot], spec)
            for slot, spec in zip(plan.decode_slots.tolist(), plan.spec_tokens.tolist(), strict=True)
        ]
        prefills = [
            (by_slot[slot], tokens)
            for slot, tokens in zip(plan.prefill_slots.tolist(), plan.prefill_tokens.tolist(), strict=True)
            if tokens > 0
        ]
        relegated = [by_slot[slot] for slot in plan.relegate_slots.tolist()]
        evicted = [by_slot[slot] for slot in plan.preempt_slots.tolist()]
        if not decodes and not prefills:
            return False
        for resident in relegated:
            self._residents.table.relegate(resident.slot)
            resident.relegated = resident.changed = True
        for resident in evicted:
            self._evict(resident.request)
        names = [resident.request.request_id for resident, _ in decodes]
        allowed = dict.fromkeys(names, ANY)
        planned = dict.fromkeys(names, 1)
        if self.num_spec_tokens:
            for resident, spec in decodes:
                request = resident.request
                self._residents.verifies(resident, spec - 1)
                request.spec_token_ids = request.spec_token_ids[: max(spec - 1, 0)]
                planned[request.request_id] += len(request.spec_token_ids)
        for resident, tokens in prefills:
            allowed[resident.request.request_id] = planned[resident.request.request_id] = tokens
        order = {name: place for place, name in enumerate(planned)}
        for resident in evicted:
            # Evicted and resumed in one step is a case that vLLM handles badly.
            allowed[resident.request.request_id] = 0
            planned.pop(resident.request.request_id, None)
        self._planned = planned
        self._order_queues(order, allowed)
        self._allowed = allowed
        return True

    def _evict(self, request: Any) -> None:
        """Drop the KV of a running request; it waits with the tokens it has."""
        if request.status == RequestStatus.RUNNING:
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())

    def _order_queues(self, order: dict[str, int], allowed: dict[str, int]) -> None:
        """Planned requests first, and best-effort ones last: vLLM evicts from the end of `running`."""
        residents, table = self._residents.by_vllm_id, self._residents.table
        last = len(order)
        standard, sequence = table.standard.tolist(), table.sequence.tolist()

        def rank(request: Any) -> tuple[bool, int, int]:
            resident = residents.get(request.request_id)
            if resident is None:
                return True, order.get(request.request_id, last), 0
            return not standard[resident.slot], order.get(request.request_id, last), sequence[resident.slot]

        def waiting_rank(request: Any) -> tuple[int, int]:
            planned = order.get(request.request_id)
            if planned is not None:
                return 1, planned
            if self._awaits_load(request):
                return 0, 0
            return (3 if self._is_blocked_waiting_status(request.status) else 2), 0

        self.running.sort(key=rank)
        for queue in (self.waiting, self.kv_holding_waiting):
            if len(queue) > 1:
                requests = sorted(queue, key=waiting_rank)
                queue.clear()
                queue.extend(requests)
            for request in queue:
                if self._awaits_load(request) or queue is self.kv_holding_waiting:
                    # The load needs no computation; without one the request's own prefill begins with a token. And
                    # vLLM looks at nobody else while one that holds KV is left out.
                    allowed.setdefault(request.request_id, 1)

    def _is_idle_by_mistake(self, output: Any) -> bool:
        """Whether the planned step came out empty while vLLM's own order might run something."""
        return bool(
            output.total_num_scheduled_tokens == 0
            and self.connector is None
            and (self.running or len(self.waiting) > len(self.deferred_waiting))
        )

    def _schedule_stock(self, empty: Any, *args: Any, **kwargs: Any) -> Any:
        """Schedule again in vLLM's own order; what the empty step would have told the workers is said again."""
        self._allowed = None
        self.finished_req_ids = self.finished_req_ids | empty.finished_req_ids
        self.reset_preempted_req_ids = self.reset_preempted_req_ids | (empty.preempted_req_ids or set())
        output = super().schedule(*args, **kwargs)
        self._deviations += output.total_num_scheduled_tokens > 0
        return output

    def _blocks(self, vllm_id: str) -> int:
        """KV blocks that a request holds."""
        held = 0
        for manager in self._managers:
            held += len(manager.req_to_blocks.get(vllm_id, ()))
        return held
