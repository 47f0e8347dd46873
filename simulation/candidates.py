"""What the controller knows of a request when it plans: lengths as far as they may be known, and cached prefixes."""

from __future__ import annotations

from scheduling.lengths import LengthEstimator
from scheduling.types import Candidate, Slo
from simulation.config import Lengths
from simulation.replica import Replica
from simulation.requests import Requests


class Candidates:
    """Requests as the planner sees them."""

    def __init__(self, requests: Requests, lengths: Lengths, prefix_cache: bool) -> None:
        """lengths: what is known of outputs."""
        self._requests = requests
        self._lengths = lengths
        self._prefix_cache = prefix_cache
        self._estimator = LengthEstimator()
        workload = requests.workload
        self._names = [str(row) for row in range(len(workload))]
        self._slos: list[Slo | None] = [None] * len(workload)
        self._sessions = [str(session) for session in workload.session.tolist()]
        self._prompts: list[int] = workload.prompt_tokens.tolist()
        self._classes = [workload.classes[index] for index in workload.class_index]
        self._max_output: list[int] = requests.max_output.tolist()

    def finished(self, row: int, slo_class: str) -> None:
        """Learn the length of a finished output."""
        if self._lengths is Lengths.QUANTILE:
            output = int(self._requests.workload.output_tokens[row])
            self._estimator.observe(slo_class, output, prompt_tokens=self._prompts[row])

    def expected_output(self, row: int, generated: int) -> int:
        """Output tokens still to come, as far as the planner may know."""
        if self._lengths is Lengths.ORACLE:
            return max(1, int(self._requests.workload.output_tokens[row]) - generated)
        bound = self._max_output[row]
        if self._lengths is Lengths.MAX_TOKENS:
            return max(1, bound - generated)
        slo_class = self._classes[row]
        return self._estimator.remaining(
            slo_class.name, slo_class.length_quantile, generated, bound, prompt_tokens=self._prompts[row]
        )

    def cached(self, row: int, target: Replica) -> int:
        """Prompt tokens of a request that a replica's prefix cache holds."""
        if not self._prefix_cache:
            return 0
        workload = self._requests.workload
        shared = int(workload.shared_prefix_tokens[row])
        if not shared:
            return 0
        return target.cache.cached_tokens(int(workload.session[row]), shared, int(workload.prompt_tokens[row]))

    def of(self, row: int, target: Replica | None = None) -> Candidate:
        """The request; its first token is the next one that is due. target: whose prefix cache counts."""
        requests = self._requests
        generated = int(requests.produced[row])
        slo = self._slos[row]
        if slo is None:
            slo = self._slos[row] = requests.slo(row)
        arrival_s = float(requests.arrival_s[row])
        cached = 0
        if target is not None:
            if requests.replica[row] == target.index:
                slot = target.table.slot(self._names[row])
                cached = int(target.table.context[slot])
            else:
                cached = self.cached(row, target)
        if generated:
            thinks = generated < requests.workload.thinking_tokens[row]
            slo = Slo(requests.next_due_s(row) - arrival_s, slo.tpot_s, slo.thinking_tpot_s if thinks else None)
        prompt = self._prompts[row] + generated
        slo_class = self._classes[row]
        return Candidate(
            request_id=self._names[row],
            arrival_s=arrival_s,
            prompt_tokens=prompt,
            slo=slo,
            expected_output_tokens=self.expected_output(row, generated),
            max_output_tokens=max(1, self._max_output[row] - generated),
            value=slo_class.value,
            cached_tokens=min(cached, prompt - 1),
            slo_class=slo_class.name,
            session_id=self._sessions[row],
        )
