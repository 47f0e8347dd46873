"""POST /v1/chat/completions: messages to a prompt, output to messages."""

from __future__ import annotations

import json
import uuid
from typing import Any

from protos.slos.v1 import client_pb2
from services.controller.chat_template import TemplateError
from services.controller.contract import ApiError, GenerationCall
from services.controller.http.calls import Arrival, fan_out, sampling_of
from services.controller.http.choice import Choice, json_text
from services.controller.http.logprobs import chat_logprobs
from services.controller.http.schema import ChatRequest, Message
from services.controller.http.tool_calls import ParsedCall, ToolCallParser
from services.controller.tokenizer import ModelTokenizer


def chat_calls(request: ChatRequest, arrival: Arrival, tokenizer: ModelTokenizer) -> list[GenerationCall]:
    """The core's calls for a request; ApiError when its messages do not fit the model's template."""
    tools = None
    if uses_tools(request):
        tools = [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
    messages = [_for_template(message, index) for index, message in enumerate(request.messages)]
    try:
        token_ids = tokenizer.apply_chat_template(messages, tools)
    except TemplateError as error:
        raise ApiError("INVALID_ARGUMENT", f"messages: {error}", "messages") from None
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    sampling = sampling_of(request, tokenizer, request.max_completion_tokens or request.max_tokens, logprobs)
    return fan_out(request, arrival, [(token_ids, tokenizer.thinks(token_ids))], sampling, bool(tools))


def uses_tools(request: ChatRequest) -> bool:
    """Whether the model is shown tools; with tool_choice "none" it is not, so it cannot call one."""
    return bool(request.tools) and request.tool_choice != "none"


def _for_template(message: Message, index: int) -> dict[str, Any]:
    """A message as templates expect it: text content, arguments of calls as objects."""
    content = message.content if message.content is not None else message.refusal or ""
    plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": content}
    for name in ("name", "tool_call_id", "reasoning_content"):
        value = getattr(message, name)
        if value is not None:
            plain[name] = value
    if message.tool_calls:
        plain["tool_calls"] = []
        for number, call in enumerate(message.tool_calls):
            try:
                arguments = json.loads(call.function.arguments or "{}")
            except (ValueError, RecursionError):
                path = f"messages[{index}].tool_calls[{number}].function.arguments"
                raise ApiError("INVALID_ARGUMENT", f"{path}: must be JSON text", path) from None
            function = {"name": call.function.name, "arguments": arguments}
            plain["tool_calls"].append({"id": call.id, "type": "function", "function": function})
    return plain


class ChatChoice(Choice):
    """One choice of a chat completion."""

    nothing = '"delta":{},"logprobs":null'
    opening = '"delta":{"role":"assistant","content":""},"logprobs":null'

    def __init__(self, request: ChatRequest, tokenizer: ModelTokenizer, request_id: str, head: str, index: int) -> None:
        """head: as in Choice."""
        options = request.stream_options
        super().__init__(request_id, head, index, options is not None and bool(options.include_usage))
        self._tokenizer = tokenizer
        self._parser = ToolCallParser() if uses_tools(request) else None
        self._logprobs = (request.top_logprobs or 0) if request.logprobs else None
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._positions: list[dict[str, Any]] = []
        self._call_count = 0

    def stream_output(self, message: client_pb2.GenerateResponse, last: bool) -> str:
        """Chunks: thinking, then text and calls in their order."""
        deltas: list[str] = []
        if message.reasoning_text:
            deltas.append(f'{{"reasoning_content":{json_text(message.reasoning_text)}}}')
        for piece in self._pieces(message, last):
            if isinstance(piece, str):
                deltas.append(f'{{"content":{json_text(piece)}}}')
            else:
                deltas.append(json_text({"tool_calls": [{"index": self._call_count, **self._call(piece)}]}))
        logprobs = "null"
        if self._logprobs is not None and message.logprobs:
            positions = chat_logprobs(message.logprobs, self._logprobs, self._tokenizer)
            logprobs = json_text({"content": positions, "refusal": None})
            deltas = deltas or ['{"content":""}']
        text = ""
        for delta in deltas:
            text += self.chunk(f'"delta":{delta},"logprobs":{logprobs}')
            logprobs = "null"
        return text

    def collect_output(self, message: client_pb2.GenerateResponse, last: bool) -> None:
        """Keep text, thinking, calls and log probabilities."""
        if message.reasoning_text:
            self._reasoning.append(message.reasoning_text)
        for piece in self._pieces(message, last):
            if isinstance(piece, str):
                self._texts.append(piece)
            else:
                self._calls.append(self._call(piece))
        if self._logprobs is not None:
            self._positions += chat_logprobs(message.logprobs, self._logprobs, self._tokenizer)

    def result(self) -> dict[str, Any]:
        """Message and log probabilities."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts), "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = self._calls
        logprobs = None if self._logprobs is None else {"content": self._positions, "refusal": None}
        return {"message": message, "logprobs": logprobs}

    def final_reason(self) -> str | None:
        """A choice that ended by itself with calls waits for their results."""
        return "tool_calls" if self._call_count and self.finish_reason == "stop" else self.finish_reason

    def _pieces(self, message: client_pb2.GenerateResponse, last: bool) -> list[str | ParsedCall]:
        text = message.text
        if self._parser is None:
            return [text] if text else []
        pieces = self._parser.push(text)
        return pieces + self._parser.flush() if last else pieces

    def _call(self, call: ParsedCall) -> dict[str, Any]:
        self._call_count += 1
        function = {"name": call.name, "arguments": call.arguments}
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
