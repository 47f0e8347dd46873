"""The ports of the controller, over a gate that is still closed."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.slos.v1 import admin_pb2, admin_pb2_grpc, client_pb2, client_pb2_grpc, common_pb2
from services.common.metrics import CollectorRegistry
from services.common.security import SecuritySettings
from services.controller.gate import Gate
from services.controller.servers import ADMIN, CLIENT, ListenError, Servers
from services.controller.settings import ControllerSettings
from services.controller.tokenizer import Catalog, ModelTokenizer
from tests.services.controller.http.conftest import CHATML, write_folder


@contextlib.asynccontextmanager
async def listening(tmp_path: Path, token: str = "", api_keys: str = "") -> AsyncIterator[grpc.aio.Channel]:
    folder = write_folder(tmp_path / "model", CHATML)
    address_file = tmp_path / "address.json"
    settings = ControllerSettings(
        models={"tiny": folder},
        controller_id="test",
        http_port=0,
        grpc_port=0,
        address_file=str(address_file),
        api_keys=api_keys,
        security=SecuritySettings(token=token),
    )
    catalog = Catalog([ModelTokenizer("tiny", folder)])
    servers = Servers(settings, Gate("still starting"), catalog, CollectorRegistry())
    await servers.start()
    try:
        async with grpc.aio.insecure_channel(json.loads(address_file.read_text())["grpc"]) as channel:
            yield channel
    finally:
        await servers.stop()


async def status_of(call: grpc.aio.UnaryUnaryCall) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), str(caught.value.details())


async def test_before_there_is_a_core_calls_are_told_to_wait(tmp_path: Path) -> None:
    async with listening(tmp_path) as channel:
        status = admin_pb2_grpc.AdminStub(channel).GetStatus(admin_pb2.GetStatusRequest())
        assert await status_of(status) == (grpc.StatusCode.UNAVAILABLE, "still starting")
        cancel = client_pb2_grpc.ClientStub(channel).Cancel(client_pb2.CancelRequest(request_id="x"))
        assert await status_of(cancel) == (grpc.StatusCode.UNAVAILABLE, "still starting")
        request = client_pb2.GenerateRequest(model="tiny", prompt="x")
        generate = client_pb2_grpc.ClientStub(channel).Generate(request)
        with pytest.raises(grpc.aio.AioRpcError, match="still starting"):
            await generate.read()


async def test_operators_need_the_cluster_token_and_clients_do_not(tmp_path: Path) -> None:
    async with listening(tmp_path, token="secret") as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        without = await status_of(admin.GetStatus(admin_pb2.GetStatusRequest()))
        assert without[0] is grpc.StatusCode.UNAUTHENTICATED
        right = (("authorization", "Bearer secret"),)
        assert (await status_of(admin.GetStatus(admin_pb2.GetStatusRequest(), metadata=right)))[1] == "still starting"
        await client_pb2_grpc.ClientStub(channel).ListModels(client_pb2.ListModelsRequest())


async def test_where_keys_are_used_a_client_shows_one_or_the_cluster_token(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice key-of-alice\n")
    async with listening(tmp_path, token="secret", api_keys=str(keys)) as channel:
        client = client_pb2_grpc.ClientStub(channel)
        for metadata in ((), (("authorization", "Bearer other"),)):
            code, _ = await status_of(client.ListModels(client_pb2.ListModelsRequest(), metadata=metadata))
            assert code is grpc.StatusCode.UNAUTHENTICATED
        for word in ("key-of-alice", "secret"):
            await client.ListModels(client_pb2.ListModelsRequest(), metadata=(("authorization", f"Bearer {word}"),))
        request = client_pb2.GenerateRequest(model="tiny", prompt="x", tenant="bob")
        with pytest.raises(grpc.aio.AioRpcError, match="belongs to tenant 'alice'"):
            await client.Generate(request, metadata=(("authorization", "Bearer key-of-alice"),)).read()


async def test_health_and_reflection_are_served(tmp_path: Path) -> None:
    async with listening(tmp_path) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        admin = await health.Check(health_pb2.HealthCheckRequest(service=ADMIN), wait_for_ready=True)
        assert admin.status == health_pb2.HealthCheckResponse.SERVING
        client = await health.Check(health_pb2.HealthCheckRequest(service=CLIENT))
        assert client.status == health_pb2.HealthCheckResponse.NOT_SERVING
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        async for answer in stub.ServerReflectionInfo(asked):
            assert {CLIENT, ADMIN} <= {service.name for service in answer.list_services_response.service}
            break


async def test_bytes_that_are_no_message_are_the_callers_mistake(tmp_path: Path) -> None:
    async with listening(tmp_path) as channel:
        generate = channel.unary_stream(f"/{CLIENT}/Generate")(b"\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "malformed" in str(caught.value.details())
        assert "GenerateRequest" in str(caught.value.details())
        code, details = await status_of(channel.unary_unary(f"/{ADMIN}/SetTenant")(b"\x0a\x05ab"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "SetTenantRequest" in details


async def test_no_bytes_are_answered_with_a_failure_of_ours(tmp_path: Path) -> None:
    """Random bytes, and right messages of which a few bytes were changed."""
    draw = random.Random(3)
    request = client_pb2.GenerateRequest(
        request_id="r",
        model="tiny",
        chat=client_pb2.ChatMessages(messages=[client_pb2.ChatMessage(role="user", content="hi")]),
        sampling=common_pb2.Sampling(temperature=0.5, stop_token_ids=[1, 2], logit_bias={3: 4.0}, stop=["x"]),
        slo=common_pb2.SloSpec(ttft_ms=5.0, output_tokens_hint=3),
    )
    right = request.SerializeToString()
    codes = set()
    async with listening(tmp_path) as channel:
        for number in range(300):
            sent = bytearray(right if number % 3 else draw.randbytes(draw.randint(1, 40)))
            for _ in range(draw.randint(1, 3)):
                sent[draw.randrange(len(sent))] = draw.randrange(256)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_stream(f"/{CLIENT}/Generate")(bytes(sent)).read()
            codes.add(caught.value.code().name)
    # The gate is closed: what is right so far is told to wait.
    assert codes == {"INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE"}


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", CHATML)
    catalog = Catalog([ModelTokenizer("tiny", folder)])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = ControllerSettings(models={"tiny": folder}, controller_id="test", http_port=port, grpc_port=0)
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}.*--http-port"):
            await Servers(settings, Gate(), catalog, CollectorRegistry()).start()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--model", "tiny"), "write NAME=FOLDER"),
        (("--model", "tiny=/nowhere"), "has no tokenizer.json"),
        (("--model", "tiny={model}", "--api-keys", "/nowhere"), "Cannot read /nowhere"),
        (("--model", "tiny={model}", "--routing", "nearest"), "unknown routing policy 'nearest'"),
    ],
)
def test_settings_that_make_no_sense_end_the_process_with_a_sentence(
    tmp_path: Path, arguments: tuple[str, ...], word: str
) -> None:
    folder = write_folder(tmp_path / "model", CHATML)
    done = subprocess.run(
        [sys.executable, "-m", "services.controller", *(text.format(model=folder) for text in arguments)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode != 0
    assert word in done.stderr
    assert "Traceback" not in done.stderr
