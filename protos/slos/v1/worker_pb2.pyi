from protos.slos.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Command(_message.Message):
    __slots__ = ("hello", "submit", "cancel", "promote", "relegate", "drain", "set_role", "ack", "ping", "configure", "hand_over")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_FIELD_NUMBER: _ClassVar[int]
    RELEGATE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    SET_ROLE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    CONFIGURE_FIELD_NUMBER: _ClassVar[int]
    HAND_OVER_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    submit: Submit
    cancel: CancelCommand
    promote: Promote
    relegate: Relegate
    drain: Drain
    set_role: SetRole
    ack: Ack
    ping: Ping
    configure: Configure
    hand_over: HandOver
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[CancelCommand, _Mapping]] = ..., promote: _Optional[_Union[Promote, _Mapping]] = ..., relegate: _Optional[_Union[Relegate, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., set_role: _Optional[_Union[SetRole, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., configure: _Optional[_Union[Configure, _Mapping]] = ..., hand_over: _Optional[_Union[HandOver, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("proto_version", "fencing_token", "last_event", "controller_id")
    PROTO_VERSION_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_ID_FIELD_NUMBER: _ClassVar[int]
    proto_version: int
    fencing_token: int
    last_event: int
    controller_id: str
    def __init__(self, proto_version: _Optional[int] = ..., fencing_token: _Optional[int] = ..., last_event: _Optional[int] = ..., controller_id: _Optional[str] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("request_id", "token_ids", "prompt_tokens", "sampling", "admission", "ttft_remaining_us", "tpot_us", "thinking_tpot_us", "thinking_end_token_id", "expected_output_tokens", "value", "slo_class", "kv_transfer", "next_token_remaining_us", "age_us", "session_id", "thinking_done", "text_chars", "hopeful")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    TTFT_REMAINING_US_FIELD_NUMBER: _ClassVar[int]
    TPOT_US_FIELD_NUMBER: _ClassVar[int]
    THINKING_TPOT_US_FIELD_NUMBER: _ClassVar[int]
    THINKING_END_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFER_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_REMAINING_US_FIELD_NUMBER: _ClassVar[int]
    AGE_US_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    THINKING_DONE_FIELD_NUMBER: _ClassVar[int]
    TEXT_CHARS_FIELD_NUMBER: _ClassVar[int]
    HOPEFUL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_tokens: int
    sampling: _common_pb2.Sampling
    admission: _common_pb2.Admission
    ttft_remaining_us: int
    tpot_us: int
    thinking_tpot_us: int
    thinking_end_token_id: int
    expected_output_tokens: int
    value: float
    slo_class: str
    kv_transfer: KvTransfer
    next_token_remaining_us: int
    age_us: int
    session_id: str
    thinking_done: bool
    text_chars: int
    hopeful: bool
    def __init__(self, request_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., prompt_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_common_pb2.Sampling, _Mapping]] = ..., admission: _Optional[_Union[_common_pb2.Admission, str]] = ..., ttft_remaining_us: _Optional[int] = ..., tpot_us: _Optional[int] = ..., thinking_tpot_us: _Optional[int] = ..., thinking_end_token_id: _Optional[int] = ..., expected_output_tokens: _Optional[int] = ..., value: _Optional[float] = ..., slo_class: _Optional[str] = ..., kv_transfer: _Optional[_Union[KvTransfer, _Mapping]] = ..., next_token_remaining_us: _Optional[int] = ..., age_us: _Optional[int] = ..., session_id: _Optional[str] = ..., thinking_done: _Optional[bool] = ..., text_chars: _Optional[int] = ..., hopeful: _Optional[bool] = ...) -> None: ...

class KvTransfer(_message.Message):
    __slots__ = ("transfer_id", "generation", "producer", "peer", "peer_address", "lease_ms")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    PEER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    generation: int
    producer: bool
    peer: str
    peer_address: str
    lease_ms: int
    def __init__(self, transfer_id: _Optional[str] = ..., generation: _Optional[int] = ..., producer: _Optional[bool] = ..., peer: _Optional[str] = ..., peer_address: _Optional[str] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class HandOver(_message.Message):
    __slots__ = ("request_id", "kv_handle")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KV_HANDLE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    kv_handle: str
    def __init__(self, request_id: _Optional[str] = ..., kv_handle: _Optional[str] = ...) -> None: ...

class CancelCommand(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class Promote(_message.Message):
    __slots__ = ("request_id", "ttft_remaining_us", "next_token_remaining_us")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TTFT_REMAINING_US_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_REMAINING_US_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    ttft_remaining_us: int
    next_token_remaining_us: int
    def __init__(self, request_id: _Optional[str] = ..., ttft_remaining_us: _Optional[int] = ..., next_token_remaining_us: _Optional[int] = ...) -> None: ...

class Relegate(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("draining",)
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    draining: bool
    def __init__(self, draining: _Optional[bool] = ...) -> None: ...

class SetRole(_message.Message):
    __slots__ = ("role",)
    ROLE_FIELD_NUMBER: _ClassVar[int]
    role: str
    def __init__(self, role: _Optional[str] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: int
    def __init__(self, event: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("nonce", "rtt_us")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    RTT_US_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    rtt_us: int
    def __init__(self, nonce: _Optional[int] = ..., rtt_us: _Optional[int] = ...) -> None: ...

class Configure(_message.Message):
    __slots__ = ("policy", "time_margin", "best_effort_floor")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TIME_MARGIN_FIELD_NUMBER: _ClassVar[int]
    BEST_EFFORT_FLOOR_FIELD_NUMBER: _ClassVar[int]
    policy: str
    time_margin: float
    best_effort_floor: float
    def __init__(self, policy: _Optional[str] = ..., time_margin: _Optional[float] = ..., best_effort_floor: _Optional[float] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "welcome", "step", "rejected", "pong", "drained", "stopping", "role_changed", "draining", "time_model_changed")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    ROLE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    TIME_MODEL_CHANGED_FIELD_NUMBER: _ClassVar[int]
    number: int
    welcome: Welcome
    step: Step
    rejected: Rejected
    pong: Pong
    drained: Drained
    stopping: Stopping
    role_changed: RoleChanged
    draining: Draining
    time_model_changed: TimeModelChanged
    def __init__(self, number: _Optional[int] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., rejected: _Optional[_Union[Rejected, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., drained: _Optional[_Union[Drained, _Mapping]] = ..., stopping: _Optional[_Union[Stopping, _Mapping]] = ..., role_changed: _Optional[_Union[RoleChanged, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., time_model_changed: _Optional[_Union[TimeModelChanged, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("info", "request_ids", "oldest_event", "incarnation")
    INFO_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_EVENT_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    info: WorkerInfo
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    oldest_event: int
    incarnation: str
    def __init__(self, info: _Optional[_Union[WorkerInfo, _Mapping]] = ..., request_ids: _Optional[_Iterable[str]] = ..., oldest_event: _Optional[int] = ..., incarnation: _Optional[str] = ...) -> None: ...

class WorkerInfo(_message.Message):
    __slots__ = ("worker_id", "proto_version", "model", "tokenizer_hash", "role", "kv_blocks", "block_size", "max_model_len", "max_batch_tokens", "max_batch_requests", "emulated", "time_model_json", "hardware", "kv_address", "max_spec_tokens", "prefix_caching", "draining", "kv_layout")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PROTO_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    EMULATED_FIELD_NUMBER: _ClassVar[int]
    TIME_MODEL_JSON_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    KV_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MAX_SPEC_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHING_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    KV_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    proto_version: int
    model: str
    tokenizer_hash: str
    role: str
    kv_blocks: int
    block_size: int
    max_model_len: int
    max_batch_tokens: int
    max_batch_requests: int
    emulated: bool
    time_model_json: str
    hardware: str
    kv_address: str
    max_spec_tokens: int
    prefix_caching: bool
    draining: bool
    kv_layout: str
    def __init__(self, worker_id: _Optional[str] = ..., proto_version: _Optional[int] = ..., model: _Optional[str] = ..., tokenizer_hash: _Optional[str] = ..., role: _Optional[str] = ..., kv_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., max_batch_tokens: _Optional[int] = ..., max_batch_requests: _Optional[int] = ..., emulated: _Optional[bool] = ..., time_model_json: _Optional[str] = ..., hardware: _Optional[str] = ..., kv_address: _Optional[str] = ..., max_spec_tokens: _Optional[int] = ..., prefix_caching: _Optional[bool] = ..., draining: _Optional[bool] = ..., kv_layout: _Optional[str] = ...) -> None: ...

class TimeModelChanged(_message.Message):
    __slots__ = ("time_model_json", "drift")
    TIME_MODEL_JSON_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    time_model_json: str
    drift: float
    def __init__(self, time_model_json: _Optional[str] = ..., drift: _Optional[float] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("duration_us", "predicted_us", "age_us", "requests", "free_blocks", "batch_tokens", "batch_requests", "ended_us")
    DURATION_US_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_US_FIELD_NUMBER: _ClassVar[int]
    AGE_US_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BATCH_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ENDED_US_FIELD_NUMBER: _ClassVar[int]
    duration_us: int
    predicted_us: int
    age_us: int
    requests: _containers.RepeatedCompositeFieldContainer[RequestStep]
    free_blocks: int
    batch_tokens: int
    batch_requests: int
    ended_us: int
    def __init__(self, duration_us: _Optional[int] = ..., predicted_us: _Optional[int] = ..., age_us: _Optional[int] = ..., requests: _Optional[_Iterable[_Union[RequestStep, _Mapping]]] = ..., free_blocks: _Optional[int] = ..., batch_tokens: _Optional[int] = ..., batch_requests: _Optional[int] = ..., ended_us: _Optional[int] = ...) -> None: ...

class RequestStep(_message.Message):
    __slots__ = ("request_id", "token_ids", "text", "logprobs", "finish_reason", "error", "prefill_remaining", "context_tokens", "kv_blocks", "preemptions", "cached_tokens", "accepted_draft_tokens", "draft_tokens", "relegated", "kv_recomputed", "kv_handle", "accept_rate", "draft_share")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PREFILL_REMAINING_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RELEGATED_FIELD_NUMBER: _ClassVar[int]
    KV_RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    KV_HANDLE_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_RATE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_SHARE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.PositionLogprobs]
    finish_reason: _common_pb2.FinishReason
    error: str
    prefill_remaining: int
    context_tokens: int
    kv_blocks: int
    preemptions: int
    cached_tokens: int
    accepted_draft_tokens: int
    draft_tokens: int
    relegated: bool
    kv_recomputed: bool
    kv_handle: str
    accept_rate: float
    draft_share: float
    def __init__(self, request_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.PositionLogprobs, _Mapping]]] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., error: _Optional[str] = ..., prefill_remaining: _Optional[int] = ..., context_tokens: _Optional[int] = ..., kv_blocks: _Optional[int] = ..., preemptions: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., accepted_draft_tokens: _Optional[int] = ..., draft_tokens: _Optional[int] = ..., relegated: _Optional[bool] = ..., kv_recomputed: _Optional[bool] = ..., kv_handle: _Optional[str] = ..., accept_rate: _Optional[float] = ..., draft_share: _Optional[float] = ...) -> None: ...

class Rejected(_message.Message):
    __slots__ = ("request_id", "code", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    code: int
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., code: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    def __init__(self, nonce: _Optional[int] = ...) -> None: ...

class Drained(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Draining(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Stopping(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class RoleChanged(_message.Message):
    __slots__ = ("role",)
    ROLE_FIELD_NUMBER: _ClassVar[int]
    role: str
    def __init__(self, role: _Optional[str] = ...) -> None: ...
