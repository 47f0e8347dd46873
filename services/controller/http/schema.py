"""Bodies of the HTTP API: every field that is accepted, with its bounds. Anything else is refused by name."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import jsonschema
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_TOKENS_BOUND = 1 << 24
MAX_N = 16
MAX_PROMPTS = 64
MAX_STOP = 16
MAX_LOGPROBS = 20
NAME_PATTERN = r"^[A-Za-z0-9_.:-]{1,128}$"

MAX_MILLISECONDS = 86_400_000  # a day, as the planner takes it

Milliseconds = Annotated[float, Field(gt=0, le=MAX_MILLISECONDS)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
TokenCount = Annotated[int, Field(ge=0, le=MAX_TOKENS_BOUND)]


def _fault(field: str, message: str) -> PydanticCustomError:
    """An error that several fields make together, named for the one to change."""
    return PydanticCustomError("conflict", message, {"field": field})


class _Strict(BaseModel):
    """No coercion, no field that is not declared, no NaN or infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class SloFields(_Strict):
    """SLOs of one request; what is not given comes from the class."""

    slo_class: Name | None = Field(None, alias="class", description="Name of an SLO class.")
    ttft_ms: Milliseconds | None = Field(None, description="Time to first token from arrival, milliseconds.")
    ttft_slowdown: Annotated[float, Field(ge=1, le=10_000)] | None = Field(
        None, description="Time to first token as a multiple of the prompt's zero-load prefill time."
    )
    tpot_ms: Milliseconds | None = Field(None, description="Time per output token, milliseconds.")
    thinking_tpot_ms: Milliseconds | None = Field(None, description="Time per token while the model thinks.")
    round: Literal["inner", "last"] | None = Field(None, description="Part of a tool loop that this request is.")
    on_miss: Literal["best_effort", "reject"] | None = Field(None, description="What to do without a promise.")
    output_tokens_hint: Annotated[int, Field(ge=1, le=MAX_TOKENS_BOUND)] | None = Field(
        None, description="Expected number of output tokens; a hint, never a bound."
    )

    @model_validator(mode="after")
    def _one_ttft(self) -> SloFields:
        if self.ttft_ms is not None and self.ttft_slowdown is not None:
            raise _fault("ttft_slowdown", "give ttft_ms or ttft_slowdown, not both")
        return self


def _flatten_content(value: Any) -> Any:
    """Text of a message; a list of text parts is joined by newlines, any other part is refused by its type."""
    if not isinstance(value, list):
        return value
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal") or set(part) - {"type", kind} or not isinstance(part.get(kind), str):
            raise ValueError(
                'a content part must be {"type": "text", "text": "..."}; images, audio and files are not served'
            )
        texts.append(part[kind])
    return "\n".join(texts)


Content = Annotated[str | None, BeforeValidator(_flatten_content, json_schema_input_type=str | list[dict[str, Any]])]


class FunctionCall(_Strict):
    """A call that the model made in an earlier round."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: str = Field(description="JSON text of the arguments.")


class ToolCall(_Strict):
    """One entry of an assistant message's tool_calls."""

    id: Annotated[str, Field(max_length=128)] = ""
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class Message(_Strict):
    """One chat message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: Annotated[str, Field(max_length=128)] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Annotated[str, Field(max_length=128)] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _fits_role(self) -> Message:
        if self.role != "assistant":
            for name in ("tool_calls", "reasoning_content", "refusal"):
                if getattr(self, name) is not None:
                    raise _fault(name, "belongs to assistant messages only")
        if self.tool_call_id is not None and self.role != "tool":
            raise _fault("tool_call_id", "belongs to tool messages only")
        if self.content is None and not self.tool_calls and self.refusal is None:
            raise _fault("content", "is missing")
        return self


class Function(_Strict):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Strict):
    """One entry of tools."""

    type: Literal["function"]
    function: Function


def _known_schema(value: dict[str, Any]) -> dict[str, Any]:
    try:
        jsonschema.Draft202012Validator.check_schema(value)
    except jsonschema.SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.message[:200]}") from None
    except RecursionError:
        raise ValueError("not a usable JSON schema: nested too deeply") from None
    return value


class JsonSchema(_Strict):
    """The schema that the output has to follow."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], AfterValidator(_known_schema)] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    """Form of the output."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_needed(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise _fault("json_schema", 'is given exactly when type is "json_schema"')
        return self


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None


_TOKEN_ID = re.compile("[0-9]{1,9}")


def _token_id_keys(value: Any) -> Any:
    """logit_bias has token ids as keys; in JSON they are text."""
    if not isinstance(value, dict):
        return value
    if len(value) > 1024:
        raise ValueError("at most 1024 tokens can be biased")
    if not all(isinstance(key, str) and _TOKEN_ID.fullmatch(key) for key in value):
        raise ValueError("keys must be token ids")
    return {int(key): bias for key, bias in value.items()}


LogitBias = Annotated[
    dict[int, Annotated[float, Field(ge=-100, le=100)]],
    BeforeValidator(_token_id_keys, json_schema_input_type=dict[str, float]),
]


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    Field(max_length=MAX_STOP),
    BeforeValidator(_one_or_more, json_schema_input_type=str | list[str]),
]


class Generation(_Strict):
    """What both endpoints take."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS_BOUND)] | None = None
    min_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 30)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: StopStrings | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0, le=(1 << 31) - 1)]], Field(max_length=1024)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    ignore_eos: bool | None = None
    logit_bias: LogitBias | None = None
    response_format: ResponseFormat | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    slo: SloFields | None = None

    @model_validator(mode="after")
    def _options_of_streams(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise _fault("stream_options", "is given only with stream: true")
        return self


class ChatRequest(Generation):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=8192)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS_BOUND)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise _fault("top_logprobs", "is given only with logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise _fault("max_tokens", "contradicts max_completion_tokens; give one of them")
        if self.tool_choice == "auto" and not self.tools:
            raise _fault("tool_choice", '"auto" needs tools')
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) != len(names):
            raise _fault("tools", "two tools have the same name")
        return self


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """The four forms of a prompt as one list of prompts, each text or token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be text, a list of texts, a list of token ids or a list of such lists, and not empty")
    prompts = [value] if type(value[0]) is int else value
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS} prompts in one request")
    if all(isinstance(prompt, str) for prompt in prompts):
        return prompts
    for prompt in prompts:
        if not isinstance(prompt, list) or not prompt or not all(type(token) is int for token in prompt):
            raise ValueError("must hold only texts or only non-empty lists of token ids")
    return prompts


Prompts = Annotated[
    list[Any],
    BeforeValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]


class CompletionRequest(Generation):
    """Body of POST /v1/completions."""

    prompt: Prompts
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def _consistent(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise _fault("echo", "cannot be combined with logprobs: log probabilities of the prompt are not served")
        return self
