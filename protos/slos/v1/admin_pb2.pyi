from protos.slos.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("replicas", "redis_ok", "running_standard", "running_best_effort", "queued_best_effort", "classes", "uptime_s", "policy", "models", "problems", "kv_handovers", "kv_recomputed")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    REDIS_OK_FIELD_NUMBER: _ClassVar[int]
    RUNNING_STANDARD_FIELD_NUMBER: _ClassVar[int]
    RUNNING_BEST_EFFORT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_BEST_EFFORT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    KV_HANDOVERS_FIELD_NUMBER: _ClassVar[int]
    KV_RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    redis_ok: bool
    running_standard: int
    running_best_effort: int
    queued_best_effort: int
    classes: _containers.RepeatedCompositeFieldContainer[ClassStats]
    uptime_s: float
    policy: str
    models: _containers.RepeatedScalarFieldContainer[str]
    problems: _containers.RepeatedScalarFieldContainer[str]
    kv_handovers: int
    kv_recomputed: int
    def __init__(self, replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., redis_ok: _Optional[bool] = ..., running_standard: _Optional[int] = ..., running_best_effort: _Optional[int] = ..., queued_best_effort: _Optional[int] = ..., classes: _Optional[_Iterable[_Union[ClassStats, _Mapping]]] = ..., uptime_s: _Optional[float] = ..., policy: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., problems: _Optional[_Iterable[str]] = ..., kv_handovers: _Optional[int] = ..., kv_recomputed: _Optional[int] = ...) -> None: ...

class ClassStats(_message.Message):
    __slots__ = ("slo_class", "finished", "promised", "kept", "attained", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms")
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    ATTAINED_FIELD_NUMBER: _ClassVar[int]
    TTFT_P50_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_P99_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_P50_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_P99_MS_FIELD_NUMBER: _ClassVar[int]
    slo_class: str
    finished: int
    promised: int
    kept: int
    attained: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    tpot_p99_ms: float
    def __init__(self, slo_class: _Optional[str] = ..., finished: _Optional[int] = ..., promised: _Optional[int] = ..., kept: _Optional[int] = ..., attained: _Optional[int] = ..., ttft_p50_ms: _Optional[float] = ..., ttft_p99_ms: _Optional[float] = ..., tpot_p50_ms: _Optional[float] = ..., tpot_p99_ms: _Optional[float] = ...) -> None: ...

class ListReplicasRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListReplicasResponse(_message.Message):
    __slots__ = ("replicas",)
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    def __init__(self, replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ...) -> None: ...

class ReplicaRequest(_message.Message):
    __slots__ = ("replica",)
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    replica: str
    def __init__(self, replica: _Optional[str] = ...) -> None: ...

class RemoveReplicaResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetReplicaRoleRequest(_message.Message):
    __slots__ = ("replica", "role")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    replica: str
    role: str
    def __init__(self, replica: _Optional[str] = ..., role: _Optional[str] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("replica", "role", "state", "address", "model", "emulated", "kv_capacity_tokens", "kv_used_tokens", "standard", "best_effort", "steps", "step_ms", "rtt_ms", "hardware", "time_model_json", "problem", "block_size", "max_batch_tokens", "max_batch_requests", "max_model_len", "max_spec_tokens", "time_margin", "margin_json")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EMULATED_FIELD_NUMBER: _ClassVar[int]
    KV_CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_USED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STANDARD_FIELD_NUMBER: _ClassVar[int]
    BEST_EFFORT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    TIME_MODEL_JSON_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_SPEC_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIME_MARGIN_FIELD_NUMBER: _ClassVar[int]
    MARGIN_JSON_FIELD_NUMBER: _ClassVar[int]
    replica: str
    role: str
    state: str
    address: str
    model: str
    emulated: bool
    kv_capacity_tokens: int
    kv_used_tokens: int
    standard: int
    best_effort: int
    steps: int
    step_ms: float
    rtt_ms: float
    hardware: str
    time_model_json: str
    problem: str
    block_size: int
    max_batch_tokens: int
    max_batch_requests: int
    max_model_len: int
    max_spec_tokens: int
    time_margin: float
    margin_json: str
    def __init__(self, replica: _Optional[str] = ..., role: _Optional[str] = ..., state: _Optional[str] = ..., address: _Optional[str] = ..., model: _Optional[str] = ..., emulated: _Optional[bool] = ..., kv_capacity_tokens: _Optional[int] = ..., kv_used_tokens: _Optional[int] = ..., standard: _Optional[int] = ..., best_effort: _Optional[int] = ..., steps: _Optional[int] = ..., step_ms: _Optional[float] = ..., rtt_ms: _Optional[float] = ..., hardware: _Optional[str] = ..., time_model_json: _Optional[str] = ..., problem: _Optional[str] = ..., block_size: _Optional[int] = ..., max_batch_tokens: _Optional[int] = ..., max_batch_requests: _Optional[int] = ..., max_model_len: _Optional[int] = ..., max_spec_tokens: _Optional[int] = ..., time_margin: _Optional[float] = ..., margin_json: _Optional[str] = ...) -> None: ...

class ListSloClassesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSloClassesResponse(_message.Message):
    __slots__ = ("classes",)
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedCompositeFieldContainer[_common_pb2.SloClass]
    def __init__(self, classes: _Optional[_Iterable[_Union[_common_pb2.SloClass, _Mapping]]] = ...) -> None: ...

class SetSloClassRequest(_message.Message):
    __slots__ = ("slo_class",)
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    slo_class: _common_pb2.SloClass
    def __init__(self, slo_class: _Optional[_Union[_common_pb2.SloClass, _Mapping]] = ...) -> None: ...

class RemoveSloClassRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemoveSloClassResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTenantsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTenantsResponse(_message.Message):
    __slots__ = ("tenants",)
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[_common_pb2.Tenant]
    def __init__(self, tenants: _Optional[_Iterable[_Union[_common_pb2.Tenant, _Mapping]]] = ...) -> None: ...

class SetTenantRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: _common_pb2.Tenant
    def __init__(self, tenant: _Optional[_Union[_common_pb2.Tenant, _Mapping]] = ...) -> None: ...

class RemoveTenantRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemoveTenantResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRequestsRequest(_message.Message):
    __slots__ = ("limit", "running_only")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_ONLY_FIELD_NUMBER: _ClassVar[int]
    limit: int
    running_only: bool
    def __init__(self, limit: _Optional[int] = ..., running_only: _Optional[bool] = ...) -> None: ...

class ListRequestsResponse(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RequestInfo]
    def __init__(self, requests: _Optional[_Iterable[_Union[RequestInfo, _Mapping]]] = ...) -> None: ...

class GetRequestRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class RequestInfo(_message.Message):
    __slots__ = ("request_id", "tenant", "phase", "promise", "prompt_tokens", "output_tokens", "age_s", "finish_reason", "outcome", "session_id", "history", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PROMISE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    phase: str
    promise: _common_pb2.Promise
    prompt_tokens: int
    output_tokens: int
    age_s: float
    finish_reason: _common_pb2.FinishReason
    outcome: _common_pb2.Outcome
    session_id: str
    history: _containers.RepeatedScalarFieldContainer[str]
    error: str
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., phase: _Optional[str] = ..., promise: _Optional[_Union[_common_pb2.Promise, _Mapping]] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., age_s: _Optional[float] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., outcome: _Optional[_Union[_common_pb2.Outcome, _Mapping]] = ..., session_id: _Optional[str] = ..., history: _Optional[_Iterable[str]] = ..., error: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("request_id", "summary", "plan_json")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    PLAN_JSON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    summary: str
    plan_json: str
    def __init__(self, request_id: _Optional[str] = ..., summary: _Optional[str] = ..., plan_json: _Optional[str] = ...) -> None: ...
