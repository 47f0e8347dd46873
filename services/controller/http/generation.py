"""The two generating endpoints: body in, calls to the core, answer out, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, TypeVarTuple, Unpack

from starlette.types import Receive, Scope, Send

from services.controller.contract import ApiError, Gateway, GenerationCall
from services.controller.http.answer import EventStream, send_json
from services.controller.http.body import parse_body, read_body
from services.controller.http.calls import Arrival
from services.controller.http.chat import ChatChoice, chat_calls
from services.controller.http.choice import Choice, json_text
from services.controller.http.completions import CompletionChoice, completion_calls
from services.controller.http.fan_in import merged, until_disconnect
from services.controller.http.schema import ChatRequest, CompletionRequest, Generation
from services.controller.http.settings import HttpSettings
from services.controller.http.slo import Headers, slo_spec
from services.controller.tokenizer import ModelTokenizer

logger = logging.getLogger(__name__)

# Checking, rendering and tokenizing more takes milliseconds, during which no other request could move.
_BIG_BODY_BYTES = 16_384

_Request = TypeVar("_Request", bound=Generation)
_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


@dataclass(frozen=True, slots=True)
class Api(Generic[_Request]):
    """What one generating endpoint has of its own; params: its names for fields that the core calls otherwise."""

    request: type[_Request]
    id_prefix: str
    whole_object: str
    chunk_object: str
    calls: Callable[[_Request, Arrival, ModelTokenizer], list[GenerationCall]]
    choice: Callable[[_Request, ModelTokenizer, str, str, int], Choice]
    params: Mapping[str, str]


CHAT = Api(
    request=ChatRequest,
    id_prefix="chatcmpl-",
    whole_object="chat.completion",
    chunk_object="chat.completion.chunk",
    calls=chat_calls,
    choice=ChatChoice,
    params={"prompt": "messages", "request_id": "x-request-id", "tenant": "x-tenant"},
)
COMPLETIONS = Api(
    request=CompletionRequest,
    id_prefix="cmpl-",
    whole_object="text_completion",
    chunk_object="text_completion",
    calls=completion_calls,
    choice=CompletionChoice,
    params={"request_id": "x-request-id", "tenant": "x-tenant"},
)


class GenerationEndpoint(Generic[_Request]):
    """ASGI application of one endpoint."""

    def __init__(
        self, api: Api[_Request], gateway: Gateway, catalog: Mapping[str, ModelTokenizer], settings: HttpSettings
    ) -> None:
        """All parts are shared by every request."""
        self._api = api
        self._gateway = gateway
        self._catalog = catalog
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; ApiError before anything was sent, ClientGone when nobody waits for the answer."""
        settings = self._settings
        body = await read_body(scope, receive, settings.max_body_bytes, settings.body_timeout_s)
        received_s = time.monotonic()
        request = await _beside(len(body), parse_body, body, self._api.request)
        headers: Headers = scope["slos.headers"]
        arrival = Arrival(
            request_id=scope["slos.given_id"] or self._api.id_prefix + scope["slos.request_id"],
            received_s=received_s,
            slo=slo_spec(request.slo, headers),
            session_id=headers.name("x-session-id"),
            tenant=scope["slos.tenant"],
        )
        scope["slos.request_id"] = arrival.request_id
        tokenizer = self._catalog.get(request.model)
        if tokenizer is None:
            served = ", ".join(sorted(self._catalog)) or "none"
            raise ApiError("NOT_FOUND", f"model {request.model!r} does not exist; served here: {served}", "model")
        work = self._serve(request, arrival, tokenizer, send, len(body))
        await until_disconnect(receive, work)

    async def _serve(
        self, request: _Request, arrival: Arrival, tokenizer: ModelTokenizer, send: Send, body_bytes: int
    ) -> None:
        stream = EventStream(send)
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                calls = await _beside(body_bytes, self._api.calls, request, arrival, tokenizer)
                if request.stream:
                    await self._stream(request, arrival, tokenizer, calls, stream)
                else:
                    await self._collect(request, arrival, tokenizer, calls, send)
        except ApiError as error:
            param = self._api.params.get(error.param or "", error.param)
            await stream.fail(ApiError(error.code, error.message, param, error.retry_after_s))
        except TimeoutError:
            limit_s = self._settings.request_timeout_s
            text = f"request {arrival.request_id} took longer than {limit_s:g} s and was cancelled"
            await stream.fail(ApiError("DEADLINE_EXCEEDED", text))
        except Exception:
            logger.exception("request failed", extra={"request_id": arrival.request_id})
            text = f"request {arrival.request_id} failed inside the server; its log says why"
            await stream.fail(ApiError("INTERNAL", text))

    async def _stream(
        self,
        request: _Request,
        arrival: Arrival,
        tokenizer: ModelTokenizer,
        calls: Sequence[GenerationCall],
        stream: EventStream,
    ) -> None:
        head = self._head(arrival, request, self._api.chunk_object)
        choices = self._choices(request, arrival, tokenizer, head, calls)
        # The status of the answer is known when every call has been accepted; until then events wait here.
        waiting = set(range(len(calls)))
        held = b""
        keeping_alive = asyncio.create_task(stream.keep_alive(self._settings.keep_alive_s))
        try:
            async with aclosing(merged(self._gateway, calls)) as messages:
                async for index, message in messages:
                    choice = choices[index]
                    events = choice.stream(message)
                    if waiting and choice.failure is None:
                        waiting.discard(index)
                        held += events
                        if waiting:
                            continue
                        events = held
                    if events and not waiting:
                        await stream.write(events)
                    if choice.failure is not None:
                        raise choice.failure
        finally:
            keeping_alive.cancel()
        _check_finished(choices, arrival.request_id)
        usage = b""
        options = request.stream_options
        if options is not None and options.include_usage:
            counts = json_text(_usage(choices, request.n or 1))
            usage = f'data: {head},"choices":[],"usage":{counts}}}\n\n'.encode()
        await stream.end(usage)

    async def _collect(
        self,
        request: _Request,
        arrival: Arrival,
        tokenizer: ModelTokenizer,
        calls: Sequence[GenerationCall],
        send: Send,
    ) -> None:
        head = self._head(arrival, request, self._api.whole_object)
        choices = self._choices(request, arrival, tokenizer, head, calls)
        async with aclosing(merged(self._gateway, calls)) as messages:
            async for index, message in messages:
                choice = choices[index]
                choice.collect(message)
                if choice.failure is not None:
                    raise choice.failure
        _check_finished(choices, arrival.request_id)
        wholes = [choice.whole() for choice in choices]
        if len(choices) > 1:
            for whole, choice in zip(wholes, choices, strict=True):
                whole["slo"] = choice.slo()
        rest = {"choices": wholes, "usage": _usage(choices, request.n or 1), "slo": choices[0].slo()}
        await send_json(send, 200, f"{head},{json_text(rest)[1:]}".encode())

    def _head(self, arrival: Arrival, request: _Request, kind: str) -> str:
        """Members that start every object of the answer, from { on."""
        members = {"id": arrival.request_id, "object": kind, "created": int(time.time()), "model": request.model}
        return json.dumps(members, ensure_ascii=False, separators=(",", ":"))[:-1]

    def _choices(
        self, request: _Request, arrival: Arrival, tokenizer: ModelTokenizer, head: str, calls: Sequence[GenerationCall]
    ) -> list[Choice]:
        return [self._api.choice(request, tokenizer, call.request_id, head, index) for index, call in enumerate(calls)]


async def _beside(body_bytes: int, work: Callable[[Unpack[_Arguments]], _Result], *args: *_Arguments) -> _Result:
    """The result of work; for big bodies it is done on a thread."""
    return await asyncio.to_thread(work, *args) if body_bytes > _BIG_BODY_BYTES else work(*args)


def _check_finished(choices: Sequence[Choice], request_id: str) -> None:
    if any(choice.finish_reason is None for choice in choices):
        raise ApiError(
            "INTERNAL", f"request {request_id} ended without a finish; `slosctl requests show` has its history"
        )


def _usage(choices: Sequence[Choice], samples: int) -> dict[str, Any]:
    """Token counts; a prompt counts once, however many samples it has."""
    firsts = choices[::samples]
    prompt = sum(choice.prompt_tokens for choice in firsts)
    output = sum(choice.output_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": sum(choice.cached_tokens for choice in firsts)},
    }
