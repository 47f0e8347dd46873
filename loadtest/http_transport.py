"""The OpenAI-compatible HTTP API as a client uses it: chat completions, streamed as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import gevent
from geventhttpclient import HTTPClient

from loadtest.records import Call, CallFailed, OutcomeInfo, Piece, PromiseInfo

_MOST_CONNECTIONS = 4096
_CONNECT_TIMEOUT_S = 10.0


class HttpTransport:
    """POST /v1/chat/completions with stream: true."""

    name = "http"

    def __init__(self, url: str, token: str = "", tls_ca: str = "", network_timeout_s: float = 600.0) -> None:
        options: dict[str, Any] = {"ssl_options": {"ca_certs": tls_ca}} if tls_ca else {}
        self._client = HTTPClient.from_url(
            url,
            concurrency=_MOST_CONNECTIONS,
            connection_timeout=_CONNECT_TIMEOUT_S,
            network_timeout=network_timeout_s,
            **options,
        )
        self._headers = {"content-type": "application/json"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"

    def generate(self, call: Call, timeout_s: float) -> Iterator[Piece]:
        """See loadtest.records.Transport."""
        headers = dict(self._headers)
        if call.session_id:
            headers["x-session-id"] = call.session_id
        if call.tenant:
            headers["x-tenant"] = call.tenant
        limit = gevent.Timeout.start_new(timeout_s)
        response = None
        try:
            response = self._client.post("/v1/chat/completions", json.dumps(to_body(call)), headers)
            if response.status_code != 200:
                raise CallFailed(str(response.status_code), _error_text(bytes(response.read())))
            yield from _pieces(response)
        except gevent.Timeout as expired:
            if expired is not limit:
                raise
            raise CallFailed("DEADLINE_EXCEEDED", f"no end within {timeout_s:g} s") from None
        except (OSError, EOFError) as error:
            raise CallFailed("UNAVAILABLE", f"the connection failed: {error}") from error
        finally:
            limit.close()
            if response is not None:
                with suppress(OSError):
                    response.release()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


def to_body(call: Call) -> dict[str, Any]:
    """Return the call as a body of the HTTP API."""
    slo: dict[str, Any] = {"class": call.slo_class, "on_miss": call.on_miss}
    for name in ("ttft_ms", "tpot_ms", "thinking_tpot_ms"):
        if getattr(call, name) is not None:
            slo[name] = getattr(call, name)
    if call.round:
        slo["round"] = call.round
    return {
        "model": call.model,
        "messages": [{"role": role, "content": content} for role, content in call.messages],
        "max_tokens": call.max_tokens,
        "temperature": call.temperature,
        "seed": call.seed,
        "ignore_eos": not call.natural_stop,
        "stream": True,
        "stream_options": {"include_usage": True},
        "slo": slo,
    }


def _pieces(response: Any) -> Iterator[Piece]:
    ended = False
    while line := response.readline(b"\n"):
        if not line.startswith(b"data:"):
            continue
        data = line[len(b"data:") :].strip()
        if data == b"[DONE]":
            ended = True
            continue
        piece = _piece(json.loads(data))
        if piece is not None:
            yield piece
    if not ended:
        raise CallFailed("UNAVAILABLE", "the stream broke off before [DONE]")


def _piece(chunk: dict[str, Any]) -> Piece | None:
    if "error" in chunk:
        error = chunk["error"]
        raise CallFailed(str(error.get("code") or error.get("type") or "INTERNAL"), str(error.get("message", "")))
    slo = chunk.get("slo") or {}
    usage = chunk.get("usage") or {}
    choice = (chunk.get("choices") or [{}])[0]
    delta = choice.get("delta") or {}
    text, reasoning = delta.get("content") or "", delta.get("reasoning_content") or ""
    return Piece(
        text=text,
        reasoning_text=reasoning,
        tokens=None if text or reasoning else 0,
        request_id=str(chunk.get("id", "")),
        promise=_promise(slo) if slo else None,
        finish_reason=choice.get("finish_reason") or "",
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        output_tokens=int(usage.get("completion_tokens", 0)),
        cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)),
        outcome=_outcome(slo["outcome"]) if slo.get("outcome") else None,
    )


def _promise(slo: dict[str, Any]) -> PromiseInfo:
    return PromiseInfo(
        admission=slo.get("admission") or "best_effort",
        slo_class=slo.get("class") or "",
        ttft_ms=float(slo.get("ttft_ms") or 0.0),
        tpot_ms=float(slo.get("tpot_ms") or 0.0),
        thinking_tpot_ms=float(slo.get("thinking_tpot_ms") or 0.0),
        replica=slo.get("replica") or "",
        reason=slo.get("reason") or "",
    )


def _outcome(outcome: dict[str, Any]) -> OutcomeInfo:
    return OutcomeInfo(
        attained=bool(outcome["attained"]),
        promised=bool(outcome["promised"]),
        promise_kept=bool(outcome.get("kept")),
        attained_paper=bool(outcome.get("attained_paper")),
        ttft_ms=float(outcome.get("ttft_ms") or 0.0),
        mean_tpot_ms=float(outcome.get("tpot_ms") or 0.0),
        worst_lateness_ms=float(outcome.get("worst_lateness_ms") or 0.0),
    )


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]
