"""Writes one HTTP answer: JSON at once, or server-sent events; errors in the form the answer has by then."""

from __future__ import annotations

import asyncio

from starlette.types import Send

from services.controller.contract import ApiError
from services.controller.http.errors import error_body, headers_of, status_of

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Buffering proxies would undo the promise.
    (b"x-accel-buffering", b"no"),
]


async def send_json(send: Send, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    """A whole answer; body is JSON."""
    await send_bytes(send, status, body, "application/json", headers)


async def send_bytes(
    send: Send, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None
) -> None:
    """A whole answer of any type."""
    raw = [(b"content-type", content_type.encode("latin-1")), (b"content-length", str(len(body)).encode())]
    raw += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError) -> None:
    """An error as a whole answer."""
    await send_json(send, status_of(error), error_body(error), headers_of(error))


class EventStream:
    """Server-sent events; nothing is sent before the first write, so that errors until then have their own status."""

    def __init__(self, send: Send) -> None:
        """send: of the request."""
        self._send = send
        self._written = 0
        self.started = False

    async def write(self, events: bytes) -> None:
        """Send events; waits while the client reads too slowly."""
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        self._written += 1
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def keep_alive(self, every_s: float) -> None:
        """Send a comment whenever nothing else was sent for so long; runs until cancelled."""
        written = -1
        while True:
            await asyncio.sleep(every_s)
            if self.started and written == self._written:
                await self._send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})
            written = self._written

    async def end(self, events: bytes = b"") -> None:
        """Send the last events and the end mark."""
        await self._send({"type": "http.response.body", "body": events + b"data: [DONE]\n\n"})

    async def fail(self, error: ApiError) -> None:
        """End with an error: as an event once events were sent, else as the answer."""
        if self.started:
            await self.end(b"data: " + error_body(error) + b"\n\n")
        else:
            await send_error(self._send, error)
