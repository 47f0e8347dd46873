"""The ports of the controller: HTTP by uvicorn and gRPC, both in the running event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.slos.v1 import admin_pb2, admin_pb2_grpc, client_pb2, client_pb2_grpc
from services.common import rpc
from services.common.metrics import CollectorRegistry
from services.common.security import ApiKeys
from services.controller.admin_api import AdminApi
from services.controller.client_api import ClientApi
from services.controller.gate import Gate
from services.controller.http.app import build_app
from services.controller.settings import ControllerSettings
from services.controller.tokenizer import Catalog

log = logging.getLogger(__name__)

CLIENT = client_pb2.DESCRIPTOR.services_by_name["Client"].full_name
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
HEALTH_EVERY_S = 0.5


class ListenError(Exception):
    """A port cannot be used; the text says which and what to do."""


class _HttpServer(uvicorn.Server):
    """uvicorn, but signals belong to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signal handlers alone."""
        yield


class Servers:
    """Both servers over one gate."""

    def __init__(self, settings: ControllerSettings, gate: Gate, catalog: Catalog, registry: CollectorRegistry) -> None:
        """Prepare; `start` listens."""
        self._settings = settings
        self._gate = gate
        keys = ApiKeys(settings.api_keys)
        self._app = build_app(gate, catalog, settings.http, keys, registry)
        self._client_api = ClientApi(gate, catalog, keys, settings.security)
        self._admin_api = AdminApi(gate)
        self._health = health.aio.HealthServicer()
        self._grpc: grpc.aio.Server | None = None
        self._http: _HttpServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen on both ports; ListenError when one is taken."""
        host, security = self._settings.host, self._settings.security
        http_socket = _listen(host, self._settings.http_port)
        server = rpc.new_server(security, open_services=(CLIENT, reflection.SERVICE_NAME))
        client_pb2_grpc.add_ClientServicer_to_server(self._client_api, server)
        admin_pb2_grpc.add_AdminServicer_to_server(self._admin_api, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((CLIENT, ADMIN, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        try:
            grpc_port = rpc.add_port(server, f"{_bracketed(host)}:{self._settings.grpc_port}", security)
        except Exception:
            http_socket.close()
            raise
        await server.start()
        self._grpc = server
        self._http = _HttpServer(
            uvicorn.Config(
                self._app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=2,
                ssl_certfile=security.tls_cert or None,
                ssl_keyfile=security.tls_key or None,
            )
        )
        http_port = http_socket.getsockname()[1]
        self._tasks = [
            asyncio.create_task(self._http.serve(sockets=[http_socket]), name="http"),
            asyncio.create_task(self._tell_health(), name="health"),
        ]
        log.info("HTTP on %s:%d, gRPC on %s:%d", host, http_port, host, grpc_port)
        if self._settings.address_file:
            addresses = {"http": f"{host}:{http_port}", "grpc": f"{host}:{grpc_port}", "pid": os.getpid()}
            _write_whole(Path(self._settings.address_file), json.dumps(addresses))

    async def stop(self) -> None:
        """Close both ports; what is still being answered gets a moment."""
        if self._http is not None:
            self._http.should_exit = True
        if self._grpc is not None:
            await self._health.enter_graceful_shutdown()
            await self._grpc.stop(grace=1.0)
        for task in self._tasks[1:]:
            task.cancel()
        _, late = await asyncio.wait(self._tasks, timeout=5.0) if self._tasks else (set(), set())
        for task in late:
            task.cancel()

    async def _tell_health(self) -> None:
        """Keep the health service in step with readiness."""
        told: bool | None = None
        while True:
            ready = not self._gate.ready()
            if ready != told:
                status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
                await self._health.set("", status)
                await self._health.set(CLIENT, status)
                await self._health.set(ADMIN, health_pb2.HealthCheckResponse.SERVING)
                told = ready
            await asyncio.sleep(HEALTH_EVERY_S)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ListenError(
            f"Cannot listen on {host}:{port} for HTTP ({error.strerror}); stop what uses the port or choose another "
            "with --http-port"
        ) from error
    listener.setblocking(False)
    return listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _write_whole(path: Path, text: str) -> None:
    """Write a file that no reader ever sees half of."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
