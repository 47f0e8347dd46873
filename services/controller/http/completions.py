"""POST /v1/completions: plain prompts in, plain text out."""

from __future__ import annotations

from typing import Any

from protos.slos.v1 import client_pb2
from services.controller.contract import ApiError, GenerationCall
from services.controller.http.calls import Arrival, fan_out, sampling_of
from services.controller.http.choice import Choice, json_text
from services.controller.http.logprobs import CompletionLogprobs
from services.controller.http.schema import CompletionRequest
from services.controller.tokenizer import ModelTokenizer

DEFAULT_MAX_TOKENS = 16  # OpenAI's and vLLM's default on this endpoint


def completion_calls(request: CompletionRequest, arrival: Arrival, tokenizer: ModelTokenizer) -> list[GenerationCall]:
    """The core's calls for a request; ApiError when a prompt is empty or holds unknown tokens."""
    prompts: list[tuple[list[int], bool]] = []
    for prompt in request.prompt:
        if isinstance(prompt, str):
            token_ids = tokenizer.encode(prompt)
            if not token_ids:
                raise ApiError("INVALID_ARGUMENT", "prompt: must not be empty", "prompt")
        else:
            token_ids = prompt
            try:
                tokenizer.check_ids(token_ids)
            except ValueError as error:
                raise ApiError("INVALID_ARGUMENT", f"prompt: {error}", "prompt") from None
        prompts.append((token_ids, tokenizer.thinks(token_ids)))
    sampling = sampling_of(request, tokenizer, request.max_tokens or DEFAULT_MAX_TOKENS, request.logprobs)
    return fan_out(request, arrival, prompts, sampling, has_tools=False)


class CompletionChoice(Choice):
    """One choice of a completion; thinking stays in the text, where this endpoint has always had it."""

    nothing = '"text":"","logprobs":null'
    opening = nothing

    def __init__(
        self, request: CompletionRequest, tokenizer: ModelTokenizer, request_id: str, head: str, index: int
    ) -> None:
        """head: as in Choice."""
        options = request.stream_options
        super().__init__(request_id, head, index, options is not None and bool(options.include_usage))
        self._echo = ""
        if request.echo:
            prompt = request.prompt[index // (request.n or 1)]
            self._echo = prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special_tokens=False)
        self._end_of_thinking = tokenizer.thinking.end
        self._thought = False
        self._logprobs = None if request.logprobs is None else CompletionLogprobs(request.logprobs)
        self._texts: list[str] = []
        self._lists: dict[str, list[Any]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}

    def stream_output(self, message: client_pb2.GenerateResponse, last: bool) -> str:
        """One chunk, when there is anything new."""
        text = self._text(message)
        logprobs = "null"
        if self._logprobs is not None and message.logprobs:
            logprobs = json_text(self._logprobs.convert(message.logprobs))
        elif not text:
            return ""
        return self.chunk(f'"text":{json_text(text)},"logprobs":{logprobs}')

    def collect_output(self, message: client_pb2.GenerateResponse, last: bool) -> None:
        """Keep text and log probabilities."""
        self._texts.append(self._text(message))
        if self._logprobs is not None:
            for name, values in self._logprobs.convert(message.logprobs).items():
                self._lists[name] += values

    def result(self) -> dict[str, Any]:
        """Text and log probabilities."""
        return {"text": "".join(self._texts), "logprobs": None if self._logprobs is None else self._lists}

    def _text(self, message: client_pb2.GenerateResponse) -> str:
        text: str = message.text
        if message.reasoning_text:
            self._thought = True
        if self._thought and text:
            text, self._thought = self._end_of_thinking + text, False
        if message.reasoning_text:
            text = message.reasoning_text + text
        if self._echo:
            text, self._echo = self._echo + text, ""
        return text
