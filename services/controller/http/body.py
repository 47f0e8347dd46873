"""From the bytes of a body to a checked request, or to an error that names the field at fault."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

import pydantic_core
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope

from services.controller.contract import ApiError
from services.controller.http.errors import HttpError

_Body = TypeVar("_Body", bound=BaseModel)

# Fields of OpenAI's API that mean something there and nothing here; ignoring them would change what was asked for.
_OPENAI_FIELDS = frozenset(
    (
        "audio",
        "best_of",
        "function_call",
        "functions",
        "metadata",
        "modalities",
        "moderation",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "suffix",
        "verbosity",
        "web_search_options",
    )
)


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


async def read_body(scope: Scope, receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body; HttpError when it is too large or too slow, ClientGone when the client went away."""
    too_large = HttpError(413, "REQUEST_TOO_LARGE", f"the body is larger than {max_bytes} bytes; send less")
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > max_bytes:
            raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                size += len(part)
                if size > max_bytes:
                    raise too_large
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        text = f"the body did not arrive within {timeout_s:g} s; send it at once"
        raise HttpError(408, "REQUEST_TIMEOUT", text) from None


def parse_body(body: bytes, model: type[_Body]) -> _Body:
    """The checked request; ApiError INVALID_ARGUMENT with the field's path in param otherwise."""
    try:
        # Unlike json.loads this refuses NaN, infinity, half surrogates and endless nesting.
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError("INVALID_ARGUMENT", f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError("INVALID_ARGUMENT", "the body must be a JSON object")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _as_api_error(first) from None


def _as_api_error(error: Any) -> ApiError:
    param = _path(error["loc"])
    kind = error["type"]
    if kind == "conflict":
        field = error["ctx"]["field"]
        param = f"{param}.{field}" if param else field
    text = error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        name = error["loc"][-1]
        if len(error["loc"]) == 1 and name in _OPENAI_FIELDS:
            message = f"{param} is a field of OpenAI's API that is not supported here; remove it"
        else:
            message = f"{param} is not a known field; remove it or correct its name"
    elif kind == "missing":
        message = f"{param} is required"
    else:
        message = f"{param}: {text[:1].lower()}{text[1:]}{_shown(error.get('input'))}"
    return ApiError("INVALID_ARGUMENT", message, param)


def _shown(value: Any) -> str:
    """The offending value, when it is short enough to help."""
    if isinstance(value, bool | int | float | str) or value is None:
        text = json.dumps(value, ensure_ascii=False)
        return f" (got {text})" if len(text) <= 80 else ""
    return ""


def _path(location: tuple[int | str, ...]) -> str:
    """A field's place as people write it: messages[0].content."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path[:200]
