"""The gRPC API as a client uses it, cooperative with locust's greenlets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grpc
import grpc.experimental.gevent

from loadtest.records import Call, CallFailed, OutcomeInfo, Piece, PromiseInfo
from protos.slos.v1 import admin_pb2, admin_pb2_grpc, client_pb2, client_pb2_grpc, common_pb2

_ADMISSIONS = {common_pb2.ADMISSION_STANDARD: "standard", common_pb2.ADMISSION_BEST_EFFORT: "best_effort"}
_FINISH = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    common_pb2.FINISH_REASON_CANCELLED: "cancelled",
    common_pb2.FINISH_REASON_ERROR: "error",
    common_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}
_ROUNDS = {"": common_pb2.ROUND_UNSPECIFIED, "inner": common_pb2.ROUND_INNER, "last": common_pb2.ROUND_LAST}
_ON_MISS = {"best_effort": common_pb2.ON_MISS_BEST_EFFORT, "reject": common_pb2.ON_MISS_REJECT}


@cache
def _patched() -> None:
    """Let gRPC's blocking calls yield to other greenlets; once per process, before the first channel."""
    grpc.experimental.gevent.init_gevent()


def open_channel(address: str, tls_ca: str = "") -> grpc.Channel:
    """Open a channel for greenlets, with TLS when an authority file is given."""
    _patched()
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.use_local_subchannel_pool", 1)]
    if tls_ca:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(tls_ca).read_bytes()), options)
    return grpc.insecure_channel(address, options)


def metadata(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata that carries an API key or the cluster's token, empty for none."""
    return (("authorization", f"Bearer {token}"),) if token else ()


class GrpcTransport:
    """Client.Generate over one channel."""

    name = "grpc"

    def __init__(self, address: str, token: str = "", tls_ca: str = "") -> None:
        self._channel = open_channel(address, tls_ca)
        self._stub = client_pb2_grpc.ClientStub(self._channel)
        self._metadata = metadata(token)

    def generate(self, call: Call, timeout_s: float) -> Iterator[Piece]:
        """See loadtest.records.Transport."""
        stream = self._stub.Generate(to_proto(call), timeout=timeout_s, metadata=self._metadata)
        try:
            for message in stream:
                if message.finish_reason == common_pb2.FINISH_REASON_ERROR:
                    raise CallFailed(message.error_code or "INTERNAL", message.error or "it failed without a word")
                yield _piece(message)
        except grpc.RpcError as error:
            raise CallFailed(error.code().name, error.details() or "") from error
        finally:
            stream.cancel()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class AdminClient:
    """The few questions a load test asks operators' API."""

    def __init__(self, address: str, token: str = "", tls_ca: str = "") -> None:
        self._channel = open_channel(address, tls_ca)
        self._admin = admin_pb2_grpc.AdminStub(self._channel)
        self._client = client_pb2_grpc.ClientStub(self._channel)
        self._metadata = metadata(token)

    def status(self, timeout_s: float = 10.0) -> admin_pb2.GetStatusResponse:
        """Return the picture of the cluster; CallFailed when it does not answer."""
        return self._ask(self._admin.GetStatus, admin_pb2.GetStatusRequest(), timeout_s)

    def models(self, timeout_s: float = 10.0) -> list[client_pb2.Model]:
        """Return what is served; CallFailed when the cluster does not answer."""
        return list(self._ask(self._client.ListModels, client_pb2.ListModelsRequest(), timeout_s).models)

    def classes(self, timeout_s: float = 10.0) -> list[common_pb2.SloClass]:
        """Return the SLO classes; CallFailed when the cluster does not answer."""
        return list(self._ask(self._admin.ListSloClasses, admin_pb2.ListSloClassesRequest(), timeout_s).classes)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _ask(self, method: grpc.UnaryUnaryMultiCallable, request: object, timeout_s: float):  # type: ignore[no-untyped-def]
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise CallFailed(error.code().name, error.details() or "") from error


def to_proto(call: Call) -> client_pb2.GenerateRequest:
    """Return the call as the wire has it."""
    request = client_pb2.GenerateRequest(
        model=call.model,
        chat=client_pb2.ChatMessages(
            messages=[client_pb2.ChatMessage(role=role, content=content) for role, content in call.messages]
        ),
        sampling=common_pb2.Sampling(
            temperature=call.temperature,
            seed=call.seed,
            max_tokens=call.max_tokens,
            ignore_eos=not call.natural_stop,
        ),
        slo=common_pb2.SloSpec(slo_class=call.slo_class, round=_ROUNDS[call.round], on_miss=_ON_MISS[call.on_miss]),
        session_id=call.session_id,
        tenant=call.tenant,
    )
    for name in ("ttft_ms", "tpot_ms", "thinking_tpot_ms"):
        if getattr(call, name) is not None:
            setattr(request.slo, name, getattr(call, name))
    return request


def _piece(message: client_pb2.GenerateResponse) -> Piece:
    promise, outcome = None, None
    if message.HasField("promise"):
        p = message.promise
        promise = PromiseInfo(
            _ADMISSIONS.get(p.admission, "best_effort"),
            p.slo_class,
            p.ttft_ms,
            p.tpot_ms,
            p.thinking_tpot_ms,
            p.replica,
            p.reason,
        )
    if message.HasField("outcome"):
        o = message.outcome
        outcome = OutcomeInfo(
            o.attained, o.promised, o.promise_kept, o.attained_paper, o.ttft_ms, o.mean_tpot_ms, o.worst_lateness_ms
        )
    return Piece(
        text=message.text,
        reasoning_text=message.reasoning_text,
        tokens=len(message.token_ids),
        request_id=message.request_id,
        promise=promise,
        finish_reason=_FINISH.get(message.finish_reason, ""),
        prompt_tokens=message.prompt_tokens,
        output_tokens=message.output_tokens,
        cached_tokens=message.cached_tokens,
        outcome=outcome,
    )
