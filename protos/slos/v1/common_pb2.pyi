from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Admission(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADMISSION_UNSPECIFIED: _ClassVar[Admission]
    ADMISSION_STANDARD: _ClassVar[Admission]
    ADMISSION_BEST_EFFORT: _ClassVar[Admission]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
    FINISH_REASON_ERROR: _ClassVar[FinishReason]
    FINISH_REASON_TOOL_CALLS: _ClassVar[FinishReason]

class Round(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUND_UNSPECIFIED: _ClassVar[Round]
    ROUND_INNER: _ClassVar[Round]
    ROUND_LAST: _ClassVar[Round]

class OnMiss(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_MISS_UNSPECIFIED: _ClassVar[OnMiss]
    ON_MISS_BEST_EFFORT: _ClassVar[OnMiss]
    ON_MISS_REJECT: _ClassVar[OnMiss]
ADMISSION_UNSPECIFIED: Admission
ADMISSION_STANDARD: Admission
ADMISSION_BEST_EFFORT: Admission
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_CANCELLED: FinishReason
FINISH_REASON_ERROR: FinishReason
FINISH_REASON_TOOL_CALLS: FinishReason
ROUND_UNSPECIFIED: Round
ROUND_INNER: Round
ROUND_LAST: Round
ON_MISS_UNSPECIFIED: OnMiss
ON_MISS_BEST_EFFORT: OnMiss
ON_MISS_REJECT: OnMiss

class SloSpec(_message.Message):
    __slots__ = ("slo_class", "ttft_ms", "ttft_slowdown", "tpot_ms", "thinking_tpot_ms", "round", "on_miss", "output_tokens_hint")
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_SLOWDOWN_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    THINKING_TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ON_MISS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_HINT_FIELD_NUMBER: _ClassVar[int]
    slo_class: str
    ttft_ms: float
    ttft_slowdown: float
    tpot_ms: float
    thinking_tpot_ms: float
    round: Round
    on_miss: OnMiss
    output_tokens_hint: int
    def __init__(self, slo_class: _Optional[str] = ..., ttft_ms: _Optional[float] = ..., ttft_slowdown: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., thinking_tpot_ms: _Optional[float] = ..., round: _Optional[_Union[Round, str]] = ..., on_miss: _Optional[_Union[OnMiss, str]] = ..., output_tokens_hint: _Optional[int] = ...) -> None: ...

class SloClass(_message.Message):
    __slots__ = ("name", "ttft_slowdown", "ttft_ms", "tpot_ms", "thinking_tpot_ms", "inner_tpot_ms", "value", "length_quantile", "precision_target", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TTFT_SLOWDOWN_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    THINKING_TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    INNER_TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_QUANTILE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_TARGET_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    ttft_slowdown: float
    ttft_ms: float
    tpot_ms: float
    thinking_tpot_ms: float
    inner_tpot_ms: float
    value: float
    length_quantile: float
    precision_target: float
    description: str
    def __init__(self, name: _Optional[str] = ..., ttft_slowdown: _Optional[float] = ..., ttft_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., thinking_tpot_ms: _Optional[float] = ..., inner_tpot_ms: _Optional[float] = ..., value: _Optional[float] = ..., length_quantile: _Optional[float] = ..., precision_target: _Optional[float] = ..., description: _Optional[str] = ...) -> None: ...

class Tenant(_message.Message):
    __slots__ = ("name", "weight", "default_class")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_CLASS_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight: float
    default_class: str
    def __init__(self, name: _Optional[str] = ..., weight: _Optional[float] = ..., default_class: _Optional[str] = ...) -> None: ...

class Promise(_message.Message):
    __slots__ = ("admission", "slo_class", "ttft_ms", "tpot_ms", "thinking_tpot_ms", "replica", "reason")
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    THINKING_TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    admission: Admission
    slo_class: str
    ttft_ms: float
    tpot_ms: float
    thinking_tpot_ms: float
    replica: str
    reason: str
    def __init__(self, admission: _Optional[_Union[Admission, str]] = ..., slo_class: _Optional[str] = ..., ttft_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., thinking_tpot_ms: _Optional[float] = ..., replica: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("attained", "promise_kept", "promised", "ttft_ms", "mean_tpot_ms", "worst_lateness_ms", "attained_paper")
    ATTAINED_FIELD_NUMBER: _ClassVar[int]
    PROMISE_KEPT_FIELD_NUMBER: _ClassVar[int]
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    MEAN_TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    WORST_LATENESS_MS_FIELD_NUMBER: _ClassVar[int]
    ATTAINED_PAPER_FIELD_NUMBER: _ClassVar[int]
    attained: bool
    promise_kept: bool
    promised: bool
    ttft_ms: float
    mean_tpot_ms: float
    worst_lateness_ms: float
    attained_paper: bool
    def __init__(self, attained: _Optional[bool] = ..., promise_kept: _Optional[bool] = ..., promised: _Optional[bool] = ..., ttft_ms: _Optional[float] = ..., mean_tpot_ms: _Optional[float] = ..., worst_lateness_ms: _Optional[float] = ..., attained_paper: _Optional[bool] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "max_tokens", "min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos", "logprobs", "json_schema", "json_object", "logit_bias")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    JSON_OBJECT_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    max_tokens: int
    min_tokens: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    ignore_eos: bool
    logprobs: int
    json_schema: str
    json_object: bool
    logit_bias: _containers.ScalarMap[int, float]
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., ignore_eos: _Optional[bool] = ..., logprobs: _Optional[int] = ..., json_schema: _Optional[str] = ..., json_object: _Optional[bool] = ..., logit_bias: _Optional[_Mapping[int, float]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "logprob", "rank", "text")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    rank: int
    text: str
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., rank: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class PositionLogprobs(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, tokens: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...
