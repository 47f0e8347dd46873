"""The one error shape of the HTTP API, and the statuses it comes with."""

from __future__ import annotations

import json
import math
from typing import Any

from services.controller.contract import ApiError

# gRPC status name -> (HTTP status, OpenAI error type).
_STATUS: dict[str, tuple[int, str]] = {
    "INVALID_ARGUMENT": (400, "invalid_request_error"),
    "OUT_OF_RANGE": (400, "invalid_request_error"),
    "FAILED_PRECONDITION": (400, "invalid_request_error"),
    "UNAUTHENTICATED": (401, "authentication_error"),
    "PERMISSION_DENIED": (403, "permission_error"),
    "NOT_FOUND": (404, "not_found_error"),
    "ALREADY_EXISTS": (409, "conflict_error"),
    "ABORTED": (409, "conflict_error"),
    "CANCELLED": (499, "cancelled_error"),
    "RESOURCE_EXHAUSTED": (429, "rate_limit_error"),
    "UNIMPLEMENTED": (501, "server_error"),
    "UNAVAILABLE": (503, "service_unavailable_error"),
    "DEADLINE_EXCEEDED": (504, "timeout_error"),
}
_INTERNAL = (500, "server_error")


class HttpError(ApiError):
    """An error that only HTTP knows, with its own status."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        """headers: sent with the answer, for example Allow."""
        super().__init__(code, message)
        self.status = status
        self.headers = headers or {}


def status_of(error: ApiError) -> int:
    """HTTP status of an error."""
    return error.status if isinstance(error, HttpError) else _STATUS.get(error.code, _INTERNAL)[0]


def headers_of(error: ApiError) -> dict[str, str]:
    """HTTP headers that an error brings."""
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    return headers


def error_object(error: ApiError) -> dict[str, Any]:
    """The OpenAI error object; code is the status name in lower case, so that programs need not read the message."""
    status = status_of(error)
    if isinstance(error, HttpError):
        kind = "invalid_request_error" if status < 500 else "server_error"
    else:
        kind = _STATUS.get(error.code, _INTERNAL)[1]
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code.lower()}}


def error_body(error: ApiError) -> bytes:
    """The error object as JSON."""
    return json.dumps(error_object(error), ensure_ascii=False).encode()
