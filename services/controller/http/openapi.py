"""The OpenAPI description of the HTTP API, made from the schemas that check requests."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from services.controller.http.schema import ChatRequest, CompletionRequest

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_SLO_HEADERS = [
    ("x-slo-class", "string", "SLO class; the body's slo.class wins."),
    ("x-slo-ttft-ms", "number", "Time to first token, milliseconds; the body's slo wins."),
    ("x-slo-tpot-ms", "number", "Time per output token, milliseconds; the body's slo wins."),
    ("x-session-id", "string", "Conversation or tool loop that the request belongs to."),
    ("x-tenant", "string", "Tenant that the request counts for."),
    ("x-request-id", "string", "Id of the request; must not be in use. Sent back in the same header."),
]


@cache
def openapi_document() -> dict[str, Any]:
    """The description, as JSON objects."""
    _, definitions = models_json_schema(
        [(ChatRequest, "validation"), (CompletionRequest, "validation")], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "SLOs-Serve",
            "version": "1",
            "description": "OpenAI-compatible generation with SLOs per request.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _generation("ChatRequest", "Answer a conversation.")},
            "/v1/completions": {"post": _generation("CompletionRequest", "Continue a text.")},
            "/v1/models": {"get": _plain("Models of the cluster.")},
            "/v1/models/{model}": {
                "get": {
                    **_plain("One model."),
                    "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
                }
            },
            "/health": {"get": _plain("The process is alive.")},
            "/ready": {"get": _plain("Requests can be served; 503 says what is missing.")},
            "/metrics": {
                "get": {
                    "summary": "Prometheus metrics.",
                    "responses": {"200": {"description": "Metrics.", "content": {"text/plain": {}}}},
                }
            },
        },
        "components": {"schemas": {**definitions["$defs"], "Error": _ERROR}},
    }


def _plain(summary: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": {"description": "Answer.", "content": {"application/json": {}}}, "default": _failure()},
    }


def _generation(schema: str, summary: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "parameters": [
            {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": kind}}
            for name, kind, text in _SLO_HEADERS
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
        },
        "responses": {
            "200": {
                "description": "The answer; with stream: true as server-sent events.",
                "content": {"application/json": {}, "text/event-stream": {}},
            },
            "default": _failure(),
        },
    }


def _failure() -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": "What is wrong, and what to do.", "content": {"application/json": {"schema": schema}}}
