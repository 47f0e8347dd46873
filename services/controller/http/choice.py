"""One choice of an answer: what of it is sent as chunks, and what is kept for the whole answer.

Chunks are put together from text prepared once per request, because one is made for every token and the controller
shares its cores with engines.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from protos.slos.v1 import client_pb2, common_pb2
from services.controller.contract import ApiError
from services.controller.http.slo import promise_object

json_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_FINISH_REASON = {common_pb2.FINISH_REASON_STOP: "stop", common_pb2.FINISH_REASON_LENGTH: "length"}


class Choice(ABC):
    """State of one choice; give it every message of its call, either to stream or to collect.

    failure: why the request failed, once a message has said so; what came before it is still to be sent.
    opening and nothing: JSON members of a chunk that opens the choice, and of one without output.
    """

    opening: ClassVar[str]
    nothing: ClassVar[str]

    def __init__(self, request_id: str, head: str, index: int, include_usage: bool) -> None:
        """head: JSON members that start every chunk of the request, from { on."""
        self._request_id = request_id
        self.index = index
        self._head = f'data: {head},"choices":[{{"index":{index},'
        self._tail = ',"usage":null}\n\n' if include_usage else "}\n\n"
        self._promise = common_pb2.Promise()
        self._outcome: common_pb2.Outcome | None = None
        self._opened = False
        self.finish_reason: str | None = None
        self.failure: ApiError | None = None
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.cached_tokens = 0

    @abstractmethod
    def stream_output(self, message: client_pb2.GenerateResponse, last: bool) -> str:
        """Chunks with the new output of a message; last: no output follows."""

    @abstractmethod
    def collect_output(self, message: client_pb2.GenerateResponse, last: bool) -> None:
        """Keep the new output of a message."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """The choice of a whole answer, without index, finish_reason and slo."""

    def stream(self, message: client_pb2.GenerateResponse) -> bytes:
        """Chunks for one message."""
        finish_reason = message.finish_reason
        text = ""
        if message.HasField("promise"):
            self._promise = message.promise
            text = self.chunk(self.nothing if self._opened else self.opening, slo=self.slo())
            self._opened = True
        if finish_reason:
            self._finish(message)
        text += self.stream_output(message, bool(finish_reason))
        if self.finish_reason is not None:
            text += self.chunk(self.nothing, self.final_reason(), self.slo())
        return text.encode()

    def collect(self, message: client_pb2.GenerateResponse) -> None:
        """Keep one message."""
        if message.HasField("promise"):
            self._promise = message.promise
        if message.finish_reason:
            self._finish(message)
        self.collect_output(message, bool(message.finish_reason))

    def chunk(self, members: str, finish_reason: str | None = None, slo: dict[str, Any] | None = None) -> str:
        """One server-sent event."""
        finish = f',"finish_reason":"{finish_reason}"}}]' if finish_reason else ',"finish_reason":null}]'
        extra = f',"slo":{json_text(slo)}' if slo is not None else ""
        return self._head + members + finish + extra + self._tail

    def whole(self) -> dict[str, Any]:
        """The choice of a whole answer."""
        return {"index": self.index, **self.result(), "finish_reason": self.final_reason()}

    def slo(self) -> dict[str, Any]:
        """The promise and, after the last message, what came of it."""
        return promise_object(self._promise, self._outcome)

    def final_reason(self) -> str | None:
        """finish_reason as the API names it."""
        return self.finish_reason

    def _finish(self, message: client_pb2.GenerateResponse) -> None:
        reason = message.finish_reason
        if reason == common_pb2.FINISH_REASON_CANCELLED:
            self.failure = ApiError("CANCELLED", f"request {self._request_id} was cancelled")
            return
        if reason not in _FINISH_REASON:
            text = message.error or f"`slosctl requests show {self._request_id}` has its history"
            self.failure = ApiError(message.error_code or "INTERNAL", f"request {self._request_id} failed: {text}")
            return
        self.finish_reason = _FINISH_REASON[reason]
        self.prompt_tokens = message.prompt_tokens
        self.output_tokens = message.output_tokens
        self.cached_tokens = message.cached_tokens
        self._outcome = message.outcome if message.HasField("outcome") else None
