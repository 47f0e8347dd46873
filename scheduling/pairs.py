"""Admission over a prefill and a decode replica together (disaggregated serving).

A pair can promise a request when the prefill replica can have the prompt done early enough for its KV to arrive, and
the decode replica can decode it beside all it has promised. Both sides are asked with the policy's own admission.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scheduling.policy import AdmissionPolicy, ReplicaView
from scheduling.time_model import BatchShape
from scheduling.types import AdmissionDecision, Candidate


@dataclass(frozen=True, slots=True)
class TransferModel:
    """How long the KV of a prompt takes from one engine to another: latency_s + tokens * per_token_s."""

    latency_s: float = 0.010
    per_token_s: float = 25e-6

    def duration_s(self, tokens: int) -> float:
        """Predicted time of one transfer."""
        return self.latency_s + tokens * self.per_token_s

    def scaled(self, factor: float) -> TransferModel:
        """Return the same model with all times multiplied."""
        if not factor > 0:
            raise ValueError(f"factor must be positive, not {factor}")
        return TransferModel(self.latency_s * factor, self.per_token_s * factor)


def next_step_s(view: ReplicaView) -> float:
    """Duration of a step in which every resident request decodes, and one more."""
    table = view.table
    used = table.high_water
    active = table.active[:used]
    requests = int(active.sum()) + 1
    kv_tokens = int(table.context[:used][active].sum())
    return view.model.duration_s(BatchShape(requests, requests, kv_tokens))


def prefill_candidate(candidate: Candidate, view: ReplicaView, handover_s: float) -> Candidate:
    """The request as its prefill replica sees it: due earlier by what comes after, and gone after one token."""
    return replace(
        candidate,
        slo=replace(candidate.slo, ttft_s=candidate.slo.ttft_s - handover_s),
        cached_tokens=view.cached_tokens.get(candidate.request_id, 0),
        expected_output_tokens=1,
        max_output_tokens=1,
    )


def decode_candidate(candidate: Candidate) -> Candidate:
    """The request as its decode replica sees it: the prompt arrives, its last token is computed again."""
    return replace(candidate, cached_tokens=candidate.prompt_tokens - 1)


def decide_pair(
    now_s: float,
    prefill: ReplicaView,
    decode: ReplicaView,
    transfer: TransferModel,
    admission: AdmissionPolicy,
    candidates: Sequence[Candidate],
) -> AdmissionDecision:
    """Which candidates the pair can promise; a request is accepted when both sides can.

    The prefill side is asked first, since whoever misses there needs no memory on the other side. Leaving out one that
    the decode side declines keeps the rest feasible.
    """
    step_s = next_step_s(decode)
    before = [
        prefill_candidate(candidate, prefill, transfer.duration_s(candidate.prompt_tokens) + step_s)
        for candidate in candidates
    ]
    prefill_s, decode_s = max(now_s, prefill.as_of_s), max(now_s, decode.as_of_s)
    first = admission.decide(prefill_s, prefill.table, prefill.free_blocks, prefill.model, prefill.limits, before)
    declined = {name: f"prefill on {prefill.replica}: {why}" for name, why in first.declined.items()}
    explain: dict[str, object] = {
        "prefill": first.explain,
        "transfer_s": {c.request_id: transfer.duration_s(c.prompt_tokens) for c in candidates},
        "decode_step_s": step_s,
    }
    wanted = set(first.accepted)
    after = [decode_candidate(candidate) for candidate in candidates if candidate.request_id in wanted]
    if not after:
        return AdmissionDecision((), declined, explain)
    second = admission.decide(decode_s, decode.table, decode.free_blocks, decode.model, decode.limits, after)
    declined |= {name: f"decode on {decode.replica}: {why}" for name, why in second.declined.items()}
    return AdmissionDecision(second.accepted, declined, {**explain, "decode": second.explain})
