"""The gRPC front door of applications."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import NoReturn

import grpc

from protos.slos.v1 import client_pb2, client_pb2_grpc
from services.common.security import ApiKeys, SecuritySettings, carries_token
from services.controller.chat_template import TemplateError
from services.controller.contract import ApiError, Gateway, GenerationCall
from services.controller.sampling import check_token_ids
from services.controller.tokenizer import ModelTokenizer

LONG_TEXT_CHARS = 20_000
"""Longer prompts are tokenized beside the event loop, so that tokens of other requests are not held up."""
ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


async def abort(context: grpc.aio.ServicerContext, error: ApiError) -> NoReturn:
    """End a call with an error; the field at fault and the time to retry travel as trailing metadata."""
    trailing = []
    if error.param is not None:
        trailing.append(("slos-param", error.param))
    if error.retry_after_s is not None:
        trailing.append(("retry-after-ms", str(round(error.retry_after_s * 1000))))
    status = getattr(grpc.StatusCode, error.code, grpc.StatusCode.INTERNAL)
    await context.abort(status, error.message, tuple(trailing))
    raise AssertionError("abort does not return")


class ClientApi(client_pb2_grpc.ClientServicer):
    """Generate, Cancel, ListModels."""

    def __init__(
        self, gateway: Gateway, catalog: Mapping[str, ModelTokenizer], api_keys: ApiKeys, security: SecuritySettings
    ) -> None:
        """catalog: tokenizers by model name. api_keys: of clients; operators may use the cluster token instead."""
        self._security = security
        self._gateway = gateway
        self._catalog = catalog
        self._api_keys = api_keys

    async def Generate(  # noqa: N802 - the name on the wire
        self, request: client_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[client_pb2.GenerateResponse]:
        """Stream the answer; the client's going away closes the stream, which cancels the request."""
        received_s = time.monotonic()
        try:
            call = await self._call(request, received_s, self._tenant(context, request.tenant))
            answer = self._gateway.generate(call)
            try:
                async for message in answer:
                    yield message
            finally:
                await answer.aclose()  # type: ignore[attr-defined]
        except ApiError as error:
            await abort(context, error)

    async def Cancel(  # noqa: N802
        self, request: client_pb2.CancelRequest, context: grpc.aio.ServicerContext
    ) -> client_pb2.CancelResponse:
        """Cancel a running request."""
        try:
            self._tenant(context, "")
            if not await self._gateway.cancel(request.request_id):
                raise ApiError("NOT_FOUND", f"no request {request.request_id!r} is running", param="request_id")
        except ApiError as error:
            await abort(context, error)
        return client_pb2.CancelResponse()

    async def ListModels(  # noqa: N802
        self, request: client_pb2.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> client_pb2.ListModelsResponse:
        """List the models that are served."""
        try:
            self._tenant(context, "")
        except ApiError as error:
            await abort(context, error)
        return client_pb2.ListModelsResponse(models=self._gateway.models())

    def _tenant(self, context: grpc.aio.ServicerContext, named: str) -> str:
        """Tenant of a call: that of its API key where keys are used, else the one it names."""
        if not self._api_keys.required:
            return named
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        authorization = metadata.get("authorization")
        tenant = self._api_keys.tenant(authorization)
        if tenant is None and carries_token(self._security, authorization):
            return named
        if tenant is None:
            raise ApiError("UNAUTHENTICATED", "send a known key as metadata `authorization: Bearer KEY`")
        if named not in ("", tenant):
            raise ApiError("PERMISSION_DENIED", f"this key belongs to tenant {tenant!r}", param="tenant")
        return tenant

    async def _call(self, request: client_pb2.GenerateRequest, received_s: float, tenant: str) -> GenerationCall:
        model = self._catalog.get(request.model)
        if model is None:
            known = ", ".join(sorted(self._catalog)) or "none"
            raise ApiError("NOT_FOUND", f"model {request.model!r} is not served; models: {known}", param="model")
        check_token_ids(request.sampling, model)
        token_ids = await self._token_ids(request, model)
        return GenerationCall(
            model=request.model,
            token_ids=tuple(token_ids),
            sampling=request.sampling,
            slo=request.slo,
            received_s=received_s,
            request_id=request.request_id,
            session_id=request.session_id,
            tenant=tenant,
            thinks=model.thinks(token_ids),
        )

    async def _token_ids(self, request: client_pb2.GenerateRequest, model: ModelTokenizer) -> list[int]:
        kind = request.WhichOneof("input")
        if kind is None:
            raise ApiError("INVALID_ARGUMENT", "give one of prompt, prompt_tokens and chat", param="prompt")
        if kind == "prompt_tokens":
            ids = list(request.prompt_tokens.ids)
            try:
                model.check_ids(ids)
            except ValueError as error:
                raise ApiError("INVALID_ARGUMENT", str(error), param="prompt_tokens") from error
            return ids
        if kind == "prompt":
            return await _maybe_beside(len(request.prompt), partial(model.encode, request.prompt))
        messages = [{"role": message.role, "content": message.content} for message in request.chat.messages]
        if not messages:
            raise ApiError("INVALID_ARGUMENT", "chat has no messages; send at least one", param="chat")
        for message in messages:
            if message["role"] not in ROLES:
                raise ApiError(
                    "INVALID_ARGUMENT", f"unknown role {message['role']!r}; roles: {', '.join(sorted(ROLES))}", "chat"
                )
        try:
            size = sum(len(message["content"]) for message in messages)
            return await _maybe_beside(size, partial(model.apply_chat_template, messages))
        except TemplateError as error:
            raise ApiError("INVALID_ARGUMENT", str(error), param="chat") from error


async def _maybe_beside(size: int, encode: partial[list[int]]) -> list[int]:
    return encode() if size < LONG_TEXT_CHARS else await asyncio.to_thread(encode)
