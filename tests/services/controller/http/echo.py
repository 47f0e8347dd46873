"""A small, whole implementation of the Gateway contract for tests of the HTTP schema: it says what it is told."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from protos.slos.v1 import client_pb2, common_pb2
from services.controller.contract import ApiError, GenerationCall
from services.controller.tokenizer import Catalog, ModelTokenizer

WINDOW = 4096


@dataclass
class EchoGateway:
    """Serves every call at once; by default the answer is the prompt's own text.

    reply: text of the answer. step_s: time per token. cut: seed of where text is cut into messages; None: per token.
    refuse: raised for every call. fail_after: tokens after which the request fails with an error.
    """

    catalog: Catalog
    reply: Callable[[GenerationCall], str] | None = None
    step_s: float = 0.0
    cut: int | None = None
    refuse: ApiError | None = None
    fail_after: int | None = None
    not_ready: str = ""
    promise_first: bool = True
    calls: list[GenerationCall] = field(default_factory=list)
    running: dict[str, asyncio.Event] = field(default_factory=dict)
    closed_early: int = 0

    async def generate(self, call: GenerationCall) -> AsyncIterator[client_pb2.GenerateResponse]:
        self.calls.append(call)
        if self.refuse is not None:
            raise self.refuse
        if call.request_id in self.running:
            raise ApiError("ALREADY_EXISTS", f"request id {call.request_id} is in use; choose another", "request_id")
        tokenizer = self.catalog[call.model]
        room = WINDOW - len(call.token_ids)
        if room <= 0:
            raise ApiError("INVALID_ARGUMENT", f"the prompt is longer than the window of {WINDOW} tokens", "messages")
        cancelled = self.running[call.request_id] = asyncio.Event()
        finished = False
        try:
            async for message in self._messages(call, tokenizer, room, cancelled):
                yield message
            finished = True
        finally:
            del self.running[call.request_id]
            self.closed_early += not finished

    async def _messages(
        self, call: GenerationCall, tokenizer: ModelTokenizer, room: int, cancelled: asyncio.Event
    ) -> AsyncIterator[client_pb2.GenerateResponse]:
        def message(**parts: object) -> client_pb2.GenerateResponse:
            return client_pb2.GenerateResponse(request_id=call.request_id, **parts)

        promise = common_pb2.Promise(
            admission=common_pb2.ADMISSION_STANDARD,
            slo_class=call.slo.slo_class or "chatbot",
            ttft_ms=call.slo.ttft_ms or 500.0,
            tpot_ms=call.slo.tpot_ms or 100.0,
            thinking_tpot_ms=call.slo.thinking_tpot_ms,
            replica="echo-0",
        )
        pending = None
        if self.promise_first:
            yield message(promise=promise)
        else:
            pending = promise
        text = tokenizer.decode(call.token_ids) if self.reply is None else self.reply(call)
        bound = min(room, call.sampling.max_tokens or room)
        ids = tokenizer.encode(text, add_special_tokens=False)
        reason = common_pb2.FINISH_REASON_STOP if len(ids) <= bound else common_pb2.FINISH_REASON_LENGTH
        ids = ids[:bound]
        generator = random.Random(self.cut)
        sent, thinking, index = 0, call.thinks, 0
        started = time.monotonic()
        while index < len(ids):
            if self.fail_after is not None and index >= self.fail_after:
                yield message(
                    text=", last words", finish_reason=common_pb2.FINISH_REASON_ERROR, error="the engine died"
                )
                return
            step = 1 if self.cut is None else generator.randint(1, 9)
            new = ids[index : index + step]
            index += len(new)
            with suppress(TimeoutError):
                await asyncio.wait_for(cancelled.wait(), self.step_s or 1e-4)
                yield message(finish_reason=common_pb2.FINISH_REASON_CANCELLED)
                return
            so_far = tokenizer.decode(ids[:index], skip_special_tokens=False)
            while so_far.endswith("\ufffd") and index < len(ids):  # inside a character: text lags behind
                so_far = so_far[:-1]
            delta, sent = so_far[sent:], max(sent, len(so_far))
            reasoning = ""
            if thinking:
                reasoning, marker, delta = delta.partition("</think>")
                thinking = not marker
            out = message(token_ids=new, text=delta, reasoning_text=reasoning, promise=pending)
            pending = None
            if call.sampling.HasField("logprobs"):
                out.logprobs.extend(_logprobs(token, call.sampling.logprobs, tokenizer) for token in new)
            yield out
        elapsed_ms = (time.monotonic() - started) * 1e3
        yield message(
            promise=pending,
            finish_reason=reason,
            prompt_tokens=len(call.token_ids),
            output_tokens=len(ids),
            cached_tokens=len(call.token_ids) // 2,
            outcome=common_pb2.Outcome(
                attained=True, promise_kept=True, promised=True, ttft_ms=elapsed_ms, mean_tpot_ms=1.0
            ),
        )

    async def cancel(self, request_id: str) -> bool:
        event = self.running.get(request_id)
        if event is not None:
            event.set()
        return event is not None

    def models(self) -> list[client_pb2.Model]:
        return [client_pb2.Model(name=name, max_model_len=WINDOW, ready_replicas=1) for name in self.catalog]

    def ready(self) -> str:
        return self.not_ready


def _logprobs(token_id: int, top: int, tokenizer: ModelTokenizer) -> common_pb2.PositionLogprobs:
    """The chosen token first, then the most probable ones, itself among them."""
    candidates = [token_id] + [(token_id + offset) % 256 for offset in range(1, top)] if top else [token_id]
    tokens = [
        common_pb2.TokenLogprob(
            token_id=candidate,
            logprob=math.log(0.5) - rank,
            rank=rank + 1,
            text=tokenizer.decode([candidate], skip_special_tokens=False),
        )
        for rank, candidate in enumerate(candidates)
    ]
    return common_pb2.PositionLogprobs(tokens=[tokens[0], *tokens[: top or 0]])
