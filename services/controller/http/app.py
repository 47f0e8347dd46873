"""The ASGI application: routes, and what every request goes through on its way in and out."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.metrics import CollectorRegistry, Counter, Histogram, exposition
from services.common.security import ApiKeys
from services.controller.contract import ApiError, Gateway
from services.controller.http.answer import send_error
from services.controller.http.body import ClientGone
from services.controller.http.choice import json_text
from services.controller.http.errors import HttpError, error_body, headers_of, status_of
from services.controller.http.generation import CHAT, COMPLETIONS, GenerationEndpoint
from services.controller.http.openapi import openapi_document
from services.controller.http.settings import HttpSettings
from services.controller.http.slo import Headers
from services.controller.tokenizer import ModelTokenizer

logger = logging.getLogger(__name__)

DEFAULTS = HttpSettings()
_CLIENT_CLOSED = 499  # never sent; says in the metrics that the client went away


def build_app(
    gateway: Gateway,
    catalog: Mapping[str, ModelTokenizer],
    settings: HttpSettings = DEFAULTS,
    api_keys: ApiKeys | None = None,
    registry: CollectorRegistry | None = None,
) -> ASGIApp:
    """The HTTP API over a core.

    catalog: tokenizers by model name. api_keys: who may call /v1; None or no keys: everyone. registry: shown at
    /metrics, and takes http_requests_total and http_request_duration_seconds; one application per registry.
    """
    registry = registry if registry is not None else CollectorRegistry()
    created = int(time.time())

    def model_object(model: Any) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": created,
            "owned_by": settings.owner,
            "max_model_len": model.max_model_len,
            "ready_replicas": model.ready_replicas,
        }

    async def list_models(_: Request) -> Response:
        return _json(200, {"object": "list", "data": [model_object(model) for model in gateway.models()]})

    async def show_model(request: Request) -> Response:
        name = request.path_params["model"]
        for model in gateway.models():
            if model.name == name:
                return _json(200, model_object(model))
        raise ApiError("NOT_FOUND", f"model {name!r} does not exist; GET /v1/models lists those that do", "model")

    async def health(_: Request) -> Response:
        return _json(200, {"status": "ok"})

    async def ready(_: Request) -> Response:
        missing = gateway.ready()
        if missing:
            raise ApiError("UNAVAILABLE", missing, retry_after_s=1.0)
        return _json(200, {"status": "ready"})

    async def metrics(_: Request) -> Response:
        body, content_type = exposition(registry)
        return Response(body, media_type=content_type)

    async def openapi(_: Request) -> Response:
        return _json(200, openapi_document())

    routes = [
        Route("/v1/chat/completions", GenerationEndpoint(CHAT, gateway, catalog, settings), methods=["POST"]),
        Route("/v1/completions", GenerationEndpoint(COMPLETIONS, gateway, catalog, settings), methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/v1/models/{model:path}", show_model),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
    ]
    handlers = {ApiError: _on_api_error, HTTPException: _on_http_error, Exception: _on_failure}
    app = Starlette(routes=routes, exception_handlers=handlers)
    # Sending a client elsewhere for a slash would lose its body and its error shape.
    app.router.redirect_slashes = False
    known = frozenset(route.path for route in routes)
    return FrontDoor(app, api_keys or ApiKeys(), registry, known)


class FrontDoor:
    """Around every request: its id, who sends it, the last catch for errors, and the metrics."""

    def __init__(self, app: ASGIApp, api_keys: ApiKeys, registry: CollectorRegistry, routes: frozenset[str]) -> None:
        """routes: paths that metrics may name; all others count as one, or a scan would fill the registry."""
        self._app = app
        self._api_keys = api_keys
        self._routes = routes
        self._requests = Counter(
            "http_requests_total", "HTTP requests.", ["handler", "method", "status"], registry=registry
        )
        self._durations = Histogram(
            "http_request_duration_seconds", "From request to end of answer.", ["handler", "method"], registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass on what is not HTTP."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        status = 0
        scope["slos.request_id"] = uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                request_id = scope["slos.request_id"].encode("latin-1")
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id)]}
            await send(message)

        try:
            self._let_in(scope)
            await self._app(scope, receive, send_with_id)
        except ApiError as error:
            await send_error(send_with_id, error)
        except ClientGone:
            status = _CLIENT_CLOSED
        except Exception:  # answered by _on_failure
            logger.exception("HTTP request failed", extra={"request_id": scope["slos.request_id"]})
        finally:
            route = scope.get("route")
            path = route.path if isinstance(route, Route) else scope["path"]
            handler = path if path in self._routes else "none"
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._requests.labels(handler, method, str(status)).inc()
            self._durations.labels(handler, method).observe(time.monotonic() - started_s)

    def _let_in(self, scope: Scope) -> None:
        """Find out who asks; ApiError when the headers are broken or the key is unknown."""
        if not scope["path"].startswith("/v1/"):
            return  # probes and scrapers bring whatever headers their proxies add
        headers = Headers(scope["headers"])
        scope["slos.headers"] = headers
        # Shorter than the core takes, because each of several choices has a number appended.
        scope["slos.given_id"] = headers.name("x-request-id", longest=120)
        scope["slos.request_id"] = scope["slos.given_id"] or scope["slos.request_id"]
        scope["slos.tenant"] = headers.name("x-tenant")
        if not self._api_keys.required:
            return
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        tenant = self._api_keys.tenant(authorization.decode("latin-1"))
        if tenant is None:
            raise ApiError("UNAUTHENTICATED", "send a known key as `Authorization: Bearer KEY`")
        if scope["slos.tenant"] not in ("", tenant):
            text = f"x-tenant: this key belongs to tenant {tenant}; leave the header out"
            raise ApiError("PERMISSION_DENIED", text, "x-tenant")
        scope["slos.tenant"] = tenant


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _json(status: int, value: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(json_text(value).encode(), status, headers, "application/json")


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(error_body(error), status_of(error), headers_of(error), "application/json")


async def _on_failure(request: Request, _: Exception) -> Response:
    text = f"request {request.scope['slos.request_id']} failed inside the server; its log says why"
    return await _on_api_error(request, ApiError("INTERNAL", text))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the router refuses: an unknown path, or a method that a path does not have."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    if error.status_code == 404:
        text, code = f"there is no {path} here; GET /openapi.json lists what there is", "NOT_FOUND"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow") or "another method"
        text, code = f"{path} does not take {method}; use {allowed}", "METHOD_NOT_ALLOWED"
    else:
        text, code = error.detail, "INVALID_REQUEST"
    return await _on_api_error(request, HttpError(error.status_code, code, text, dict(error.headers or {})))
