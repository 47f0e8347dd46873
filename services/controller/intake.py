"""From a call to a live request: checks it, finds its class and tenant, resolves its SLOs and its worth."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping

from protos.slos.v1 import common_pb2
from scheduling.deadlines import SloError, SloFields, resolve
from scheduling.lengths import LengthEstimator
from scheduling.types import OnMiss, Round, SloClass
from services.controller.contract import ApiError, GenerationCall
from services.controller.directory import Directory
from services.controller.mirror import ReplicaMirror
from services.controller.reasoning import ReasoningSplitter
from services.controller.replicas import ReplicaManager
from services.controller.request import LiveRequest, Outbox
from services.controller.sampling import checked_sampling
from services.controller.tokenizer import ModelTokenizer

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_ROUNDS = {common_pb2.ROUND_INNER: Round.INNER, common_pb2.ROUND_LAST: Round.LAST}


class Intake:
    """Makes live requests out of calls."""

    def __init__(
        self,
        models: Mapping[str, ModelTokenizer],
        directory: Directory,
        replicas: ReplicaManager,
        lengths: LengthEstimator,
    ) -> None:
        """models: by the name that requests use."""
        self._models = models
        self._directory = directory
        self._replicas = replicas
        self._lengths = lengths
        self._reference: dict[str, ReplicaMirror] = {}

    def accept(self, call: GenerationCall) -> LiveRequest:
        """Check a call and resolve its SLOs; ApiError says what is wrong with it."""
        model = self._models.get(call.model)
        if model is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise ApiError("NOT_FOUND", f"model {call.model!r} is not served; models: {known}", param="model")
        if call.request_id and not REQUEST_ID.fullmatch(call.request_id):
            raise ApiError(
                "INVALID_ARGUMENT", "a request id has 1 to 128 letters, digits and any of _ . : -", param="request_id"
            )
        if not call.token_ids:
            raise ApiError("INVALID_ARGUMENT", "the prompt is empty; send at least one token", param="prompt")
        tenant = self._directory.tenant(call.tenant)
        slo_class = self._directory.slo_class(call.slo.slo_class, tenant)
        mirror = self._mirror(call.model)
        prompt_tokens = len(call.token_ids)
        sampling = checked_sampling(call.sampling, prompt_tokens, mirror.limits.max_model_len)
        zero_load_s = mirror.model.zero_load_prefill_s(prompt_tokens, mirror.limits.max_batch_tokens)
        try:
            slo = resolve(slo_class, _fields(call.slo), zero_load_s, has_tools=call.has_tools, thinks=call.thinks)
        except SloError as error:
            raise ApiError("INVALID_ARGUMENT", str(error), param=f"slo.{error.field}") from error
        request_id = call.request_id or uuid.uuid4().hex
        thinks = call.thinks and model.thinking_end_id is not None
        return LiveRequest(
            request_id=request_id,
            call=call,
            slo_class=slo_class.name,
            tenant=tenant.name,
            slo=slo,
            value=slo_class.value * tenant.weight,
            on_miss=OnMiss.REJECT if call.slo.on_miss == common_pb2.ON_MISS_REJECT else OnMiss.BEST_EFFORT,
            sampling=sampling,
            expected_output_tokens=self.remaining(slo_class, call, sampling.max_tokens, 0),
            max_output_tokens=sampling.max_tokens,
            outbox=Outbox(request_id),
            zero_load_s=zero_load_s,
            splitter=ReasoningSplitter(model.thinking.start, model.thinking.end) if thinks else None,
            thinking_end_token_id=model.thinking_end_id if thinks else None,
        )

    def remaining(self, slo_class: SloClass, call: GenerationCall, max_tokens: int, generated: int) -> int:
        """Output tokens still to come, at the risk level of the class."""
        hint = call.slo.output_tokens_hint if call.slo.HasField("output_tokens_hint") else None
        return self._lengths.remaining(
            slo_class.name,
            slo_class.length_quantile,
            generated,
            max_tokens,
            tenant=call.tenant,
            prompt_tokens=len(call.token_ids),
            hint=hint or None,
        )

    def _mirror(self, model: str) -> ReplicaMirror:
        """Replica whose time model is the reference of this model's zero-load prefill; kept while it serves."""
        serving = self._replicas.usable(model) or self._replicas.awaited(model)
        usable = [replica.mirror for replica in serving if replica.mirror is not None]
        kept = self._reference.get(model)
        if kept is None or (usable and not any(mirror is kept for mirror in usable)):
            if not usable:
                raise ApiError("UNAVAILABLE", self._replicas.why_none(model), retry_after_s=2.0)
            kept = self._reference[model] = usable[0]
        return kept


def _fields(spec: common_pb2.SloSpec) -> SloFields:
    return SloFields(
        ttft_ms=spec.ttft_ms if spec.HasField("ttft_ms") else None,
        ttft_slowdown=spec.ttft_slowdown if spec.HasField("ttft_slowdown") else None,
        tpot_ms=spec.tpot_ms if spec.HasField("tpot_ms") else None,
        thinking_tpot_ms=spec.thinking_tpot_ms if spec.HasField("thinking_tpot_ms") else None,
        round=_ROUNDS.get(spec.round, Round.NONE),
    )
