"""Whether a worker and this controller can work together."""

from __future__ import annotations

from collections.abc import Mapping

from protos.slos.v1 import worker_pb2
from services.common.rpc import PROTO_VERSION
from services.controller.tokenizer import ModelTokenizer


def why_unintelligible(info: worker_pb2.WorkerInfo) -> str:
    """Say that a worker speaks another version of the API; empty when it does not."""
    if info.proto_version == PROTO_VERSION:
        return ""
    return (
        f"worker {info.worker_id} speaks version {info.proto_version} of the worker API, "
        f"this controller version {PROTO_VERSION}; run both from the same release"
    )


def why_unfit(models: Mapping[str, ModelTokenizer], info: worker_pb2.WorkerInfo) -> str:
    """Say why a worker does not fit this controller's models; empty when it does."""
    model = models.get(info.model)
    if model is None:
        known = ", ".join(sorted(models)) or "none"
        return f"worker {info.worker_id} serves model {info.model!r}, this controller knows {known}"
    if info.tokenizer_hash != model.hash:
        return (
            f"worker {info.worker_id} has another tokenizer for {info.model!r} "
            f"({info.tokenizer_hash[:12] or 'none'}, here {model.hash[:12]}); give both the same model folder"
        )
    return ""
