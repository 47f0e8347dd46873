from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from protos.slos.v1 import client_pb2, client_pb2_grpc, worker_pb2, worker_pb2_grpc
from services.common.rpc import add_port, new_server, open_channel
from services.common.security import ApiKeys, SecurityError, SecuritySettings, server_credentials


class Echo(worker_pb2_grpc.WorkerServicer, client_pb2_grpc.ClientServicer):
    """Answers one call of each kind."""

    async def Attach(  # noqa: N802
        self, commands: AsyncIterator[worker_pb2.Command], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[worker_pb2.Event]:
        async for command in commands:
            yield worker_pb2.Event(pong=worker_pb2.Pong(nonce=command.ping.nonce))

    async def ListModels(  # noqa: N802
        self, request: client_pb2.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> client_pb2.ListModelsResponse:
        return client_pb2.ListModelsResponse(models=[client_pb2.Model(name="m")])

    async def Generate(  # noqa: N802
        self, request: client_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[client_pb2.GenerateResponse]:
        yield client_pb2.GenerateResponse(text="t")


async def served(settings: SecuritySettings, open_services: tuple[str, ...] = ()) -> tuple[grpc.aio.Server, int]:
    server = new_server(settings, open_services=open_services)
    worker_pb2_grpc.add_WorkerServicer_to_server(Echo(), server)
    client_pb2_grpc.add_ClientServicer_to_server(Echo(), server)
    port = add_port(server, "127.0.0.1:0", settings)
    await server.start()
    return server, port


async def ping(channel: grpc.aio.Channel) -> worker_pb2.Event:
    call = worker_pb2_grpc.WorkerStub(channel).Attach(timeout=10)
    await call.write(worker_pb2.Command(ping=worker_pb2.Ping(nonce=4)))
    return await call.read()


async def call_all(address: str, settings: SecuritySettings) -> None:
    """Make a call of each kind; AioRpcError when one is refused."""
    async with open_channel(address, settings) as channel:
        client = client_pb2_grpc.ClientStub(channel)
        assert (await client.ListModels(client_pb2.ListModelsRequest(), timeout=10)).models[0].name == "m"
        texts = [reply.text async for reply in client.Generate(client_pb2.GenerateRequest(), timeout=10)]
        assert texts == ["t"]
        assert (await ping(channel)).pong.nonce == 4


async def test_token_lets_in_who_has_it_and_no_one_else() -> None:
    server, port = await served(SecuritySettings(token="secret"))
    address = f"127.0.0.1:{port}"
    try:
        await call_all(address, SecuritySettings(token="secret"))
        for wrong in (SecuritySettings(), SecuritySettings(token="secre"), SecuritySettings(token="secret2")):
            async with open_channel(address, wrong) as channel:
                client = client_pb2_grpc.ClientStub(channel)
                with pytest.raises(grpc.aio.AioRpcError, match="cluster token") as unary:
                    await client.ListModels(client_pb2.ListModelsRequest(), timeout=10)
                assert unary.value.code() is grpc.StatusCode.UNAUTHENTICATED
                with pytest.raises(grpc.aio.AioRpcError, match="cluster token"):
                    await client.Generate(client_pb2.GenerateRequest(), timeout=10).read()
                with pytest.raises(grpc.aio.AioRpcError, match="cluster token"):
                    await ping(channel)
    finally:
        await server.stop(0)


async def test_open_services_ask_for_no_cluster_token_and_the_others_do() -> None:
    server, port = await served(SecuritySettings(token="secret"), open_services=("slos.v1.Client",))
    try:
        async with open_channel(f"127.0.0.1:{port}", SecuritySettings()) as channel:
            client = client_pb2_grpc.ClientStub(channel)
            assert (await client.ListModels(client_pb2.ListModelsRequest(), timeout=10)).models[0].name == "m"
            with pytest.raises(grpc.aio.AioRpcError, match="cluster token"):
                await ping(channel)
    finally:
        await server.stop(0)


async def test_two_servers_cannot_share_a_port() -> None:
    server, port = await served(SecuritySettings())
    other = new_server(SecuritySettings())
    try:
        with pytest.raises(SecurityError, match="port in use"):
            add_port(other, f"127.0.0.1:{port}", SecuritySettings())
    finally:
        await server.stop(0)
        await other.stop(0)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a certificate for 127.0.0.1 that it signed, and a second authority that signed nothing."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for name in ("ca", "stranger"):
        openssl(
            "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}"
        )
    openssl("req", *key, "-keyout", "part.key", "-out", "part.csr", "-subj", "/CN=part")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
    openssl("x509", "-req", "-in", "part.csr", *signing, "-out", "part.pem")
    return folder


async def test_tls_with_token(certificates: Path) -> None:
    part = SecuritySettings(
        tls_cert=str(certificates / "part.pem"),
        tls_key=str(certificates / "part.key"),
        tls_ca=str(certificates / "ca.pem"),
        token="secret",
    )
    server, port = await served(part)
    try:
        await call_all(f"127.0.0.1:{port}", part)
        for wrong in (SecuritySettings(token="secret"), SecuritySettings(str(certificates / "stranger.pem"), "", "")):
            trusting = SecuritySettings(tls_ca=wrong.tls_cert, token="secret")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_all(f"127.0.0.1:{port}", trusting)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await server.stop(0)


async def test_mutual_tls_refuses_clients_without_certificate(certificates: Path) -> None:
    part = SecuritySettings(
        tls_cert=str(certificates / "part.pem"),
        tls_key=str(certificates / "part.key"),
        tls_ca=str(certificates / "ca.pem"),
        require_client_cert=True,
    )
    server, port = await served(part)
    try:
        await call_all(f"127.0.0.1:{port}", part)
        with pytest.raises(grpc.aio.AioRpcError):
            await call_all(f"127.0.0.1:{port}", SecuritySettings(tls_ca=part.tls_ca))
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (SecuritySettings(tls_cert="a.pem"), "both the certificate and the key"),
        (SecuritySettings(tls_key="a.key"), "both the certificate and the key"),
        (SecuritySettings(tls_ca="ca.pem"), "without certificate and key"),
        (SecuritySettings("/nowhere.pem", "/nowhere.key"), "Cannot read /nowhere"),
        (SecuritySettings("a.pem", "a.key", require_client_cert=True), "with a TLS authority"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: SecuritySettings, words: str) -> None:
    with pytest.raises(SecurityError, match=words):
        server_credentials(settings)


def test_api_keys_belong_to_tenants(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# who may call\n\nalice key-1\nbob   key-2\n")
    keys = ApiKeys(str(path))
    assert keys.required
    assert keys.tenant("Bearer key-1") == "alice"
    assert keys.tenant("bearer  key-2 ") == "bob"
    for wrong in (None, "", "Bearer", "Bearer ", "Basic key-1", "key-1", "Bearer key-3"):
        assert keys.tenant(wrong) is None
    assert not ApiKeys().required


@pytest.mark.parametrize(("text", "words"), [("alice", "line 1"), ("a b c", "line 1"), ("# none\n", "no API key")])
def test_api_key_files_that_make_no_sense_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(SecurityError, match=words):
        ApiKeys(str(path))
