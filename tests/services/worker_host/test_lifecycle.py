"""Worker processes that start, die, end and lose what they lean on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time

import grpc
import pytest
from click.testing import CliRunner

from protos.slos.v1 import common_pb2
from scheduling.time_model import TimeModel
from services.common.embedded_redis import EmbeddedRedis, free_port
from services.common.security import SecuritySettings
from services.common.store import Store
from services.worker_host.command_line import command
from tests.fixtures.cluster import Cluster, eventually
from tests.services.worker_host.driver import Account, attach, next_fence, submission

SLOW = TimeModel(((0.02, 0.0, 0.0, 0.0, 0.0, 0.0),), source="assumed: for tests")


async def test_killed_worker_is_lost_when_its_lease_ends_and_comes_back_under_its_id(
    cluster: Cluster, store: Store
) -> None:
    worker = cluster.start_worker(worker_id="phoenix")
    first = (await cluster.wait_registered("phoenix"))["phoenix"]
    worker.kill()
    await cluster.wait_lost("phoenix")
    assert "phoenix" in {record.worker_id for record in await store.replicas.all()}
    cluster.start_worker(worker_id="phoenix")
    await eventually(store, "phoenix", lambda record: record.incarnation != first.incarnation)
    second = (await cluster.wait_registered("phoenix"))["phoenix"]
    account = Account()
    account.last_event = 0
    async with attach(second.address, account) as driver:
        assert driver.welcome.incarnation == second.incarnation
        assert driver.welcome.request_ids == []


async def test_second_process_with_the_same_id_ends_the_first(cluster: Cluster, store: Store) -> None:
    first = cluster.start_worker(worker_id="twin")
    record = (await cluster.wait_registered("twin"))["twin"]
    cluster.start_worker(worker_id="twin")
    assert first.exit_code(60) == 1
    assert "give each worker an id of its own" in first.text()
    await eventually(store, "twin", lambda entry: not entry.lost and entry.incarnation != record.incarnation)


async def test_sigterm_finishes_what_runs_and_ends_with_zero(cluster: Cluster, store: Store) -> None:
    worker = cluster.start_worker(worker_id="polite", model=SLOW)
    address = (await cluster.wait_registered("polite"))["polite"].address
    async with attach(address) as driver:
        await driver.submit(submission("a", max_tokens=40))
        await driver.until(lambda account: "a" in account.tokens)
        worker.signal(signal.SIGTERM)
        await driver.until(lambda account: account.heard("draining"))
        await driver.submit(submission("late"))
        status, _ = await driver.end()
        assert status is grpc.StatusCode.OK
        assert len(driver.account.tokens["a"]) == 40
        assert driver.account.rejected["late"].code == grpc.StatusCode.UNAVAILABLE.value[0]
        kinds = [event.WhichOneof("event") for event in driver.account.others]
        assert kinds == ["draining", "drained", "stopping"]
    assert worker.exit_code() == 0
    assert "polite" not in {record.worker_id for record in await store.replicas.all()}


@pytest.mark.parametrize("again", [False, True])
async def test_sigterm_gives_up_after_the_limit_or_a_second_signal(cluster: Cluster, again: bool) -> None:
    limit = "60" if again else "0.3"
    worker = cluster.start_worker("--drain-s", limit, worker_id=f"hasty-{again}", model=SLOW)
    address = (await cluster.wait_registered(worker.worker_id))[worker.worker_id].address
    async with attach(address) as driver:
        await driver.submit(submission("long", max_tokens=5000))
        await driver.until(lambda account: "long" in account.tokens)
        worker.signal(signal.SIGTERM)
        await driver.until(lambda account: account.heard("draining"))
        if again:
            worker.signal(signal.SIGINT)
        await driver.end()
        assert driver.account.heard("stopping")
        # It must go on elsewhere: this is no end of the request.
        assert "long" not in driver.account.finished
    assert worker.exit_code() == 0


async def test_signal_while_loading_ends_at_once(cluster: Cluster) -> None:
    worker = cluster.start_worker(worker_id="early")
    await asyncio.sleep(0.2)
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() in (0, -signal.SIGTERM)  # before the process has its handlers the signal ends it


async def test_requests_outlive_a_redis_that_is_killed_and_comes_back(own_cluster: Cluster) -> None:
    assert own_cluster.redis is not None
    worker = own_cluster.start_worker(worker_id="steady", model=SLOW)
    address = (await own_cluster.wait_registered("steady"))["steady"].address
    async with attach(address) as driver:
        await driver.submit(submission("through", max_tokens=150))
        await driver.until(lambda account: "through" in account.tokens)
        own_cluster.redis.kill()
        await driver.submit(submission("during", max_tokens=20))
        await driver.until(lambda account: "during" in account.finished)
        await driver.until(lambda account: "through" in account.finished)
        assert len(driver.account.tokens["through"]) == 150
    own_cluster.redis.start()
    await own_cluster.wait_registered("steady")
    assert "does not answer" in worker.text()
    async with asyncio.timeout(10):
        while "Redis answers again" not in worker.text():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)
    worker.signal()
    assert worker.exit_code() == 0


async def test_redis_that_lost_its_data_gets_the_entry_again(own_cluster: Cluster) -> None:
    assert own_cluster.redis is not None
    own_cluster.start_worker(worker_id="w")
    await own_cluster.wait_registered("w")
    store = Store(own_cluster.store_settings)
    await store.connection.redis.flushall()
    await store.close()
    await own_cluster.wait_registered("w")


async def test_worker_serves_while_redis_is_not_there_yet(own_cluster: Cluster) -> None:
    assert own_cluster.redis is not None
    own_cluster.redis.kill()
    port = free_port()
    worker = own_cluster.start_worker("--port", str(port), worker_id="alone")
    async with asyncio.timeout(60):
        while "serving" not in worker.text():
            assert worker.process.poll() is None, worker.text()
            await asyncio.sleep(0.05)
    async with attach(f"127.0.0.1:{port}") as driver:
        await driver.submit(submission("a"))
        await driver.until(lambda account: "a" in account.finished)
    assert "does not answer" in worker.text()
    own_cluster.redis.start()
    await own_cluster.wait_registered("alone")


async def test_fresh_worker_refuses_a_deposed_leader(own_cluster: Cluster) -> None:
    store = Store(own_cluster.store_settings)
    lease = await store.leader.acquire("leader", 5.0)
    assert lease is not None
    own_cluster.start_worker(worker_id="fresh")
    address = (await own_cluster.wait_registered("fresh"))["fresh"].address
    with pytest.raises((grpc.aio.AioRpcError, EOFError), match="newer controller leads"):
        async with attach(address, fence=lease.fencing_token - 1):
            pass
    async with attach(address, fence=lease.fencing_token, controller_id="leader"):
        pass
    await store.close()


async def test_requests_without_a_controller_are_cancelled_after_the_limit(cluster: Cluster) -> None:
    cluster.start_worker("--orphan-s", "0.4", "--kept-events", "50", worker_id="orphan", model=SLOW)
    address = (await cluster.wait_registered("orphan"))["orphan"].address
    account, fence = Account(), next_fence()
    async with attach(address, account, fence=fence) as driver:
        for number in range(5):
            await driver.submit(submission(f"r{number}", max_tokens=5000))
        await driver.until(lambda account: len(account.tokens) == 5)
        driver.cut()
    deadline_s = time.monotonic() + 20
    while True:
        async with attach(address, Account(), fence=fence) as driver:
            if not driver.welcome.request_ids:
                break
        # Attaching is a sign of life: stay away longer than the limit.
        assert time.monotonic() < deadline_s, driver.welcome.request_ids
        await asyncio.sleep(1.2)
    late = Account()
    async with attach(address, late, fence=fence) as driver:
        late.last_event = driver.welcome.oldest_event - 1
        await driver.settle()
        assert len(late.finished) == 5
        assert {update.finish_reason for update in late.finished.values()} == {common_pb2.FINISH_REASON_ERROR}
        assert "no controller" in late.finished["r0"].error
        await driver.submit(submission("after", max_tokens=3))
        await driver.until(lambda account: "after" in account.finished)
        assert late.free_blocks == driver.welcome.info.kv_blocks


async def test_silent_controller_is_taken_for_gone(cluster: Cluster) -> None:
    cluster.start_worker("--silence-s", "0.5", worker_id="listener")
    address = (await cluster.wait_registered("listener"))["listener"].address
    async with attach(address) as driver:
        status, text = await driver.end()
    assert status is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "silent" in text


async def test_controller_that_never_acknowledges_slows_the_engine_down(cluster: Cluster) -> None:
    cluster.start_worker("--kept-events", "20", worker_id="bounded")
    address = (await cluster.wait_registered("bounded"))["bounded"].address
    async with attach(address) as driver:
        await driver.submit(submission("a", max_tokens=2000))
        await driver.until(lambda account: account.last_event == 20)
        await asyncio.sleep(0.3)
        await driver.settle()
        assert driver.account.last_event == 20
        await driver.cancel("a")
        while "a" not in driver.account.finished:
            await driver.acknowledge()
            await driver.next()
        assert driver.account.last_event > 40


async def test_paused_worker_goes_on_with_its_requests(cluster: Cluster, store: Store) -> None:
    worker = cluster.start_worker(worker_id="sleeper", model=SLOW)
    address = (await cluster.wait_registered("sleeper"))["sleeper"].address
    async with attach(address) as driver:
        await driver.submit(submission("a", max_tokens=60))
        await driver.until(lambda account: "a" in account.tokens)
        worker.pause()
        await cluster.wait_lost("sleeper")
        worker.resume()
        await driver.until(lambda account: "a" in account.finished)
        assert len(driver.account.tokens["a"]) == 60
    await eventually(store, "sleeper", lambda record: not record.lost)


async def test_token_keeps_strangers_out(cluster: Cluster) -> None:
    cluster.start_worker("--token", "secret", worker_id="guarded")
    address = (await cluster.wait_registered("guarded"))["guarded"].address
    for security in (SecuritySettings(), SecuritySettings(token="wrong")):
        with pytest.raises((grpc.aio.AioRpcError, EOFError), match="cluster token"):
            async with attach(address, security=security):
                pass
    async with attach(address, security=SecuritySettings(token="secret")) as driver:
        await driver.submit(submission("a"))
        await driver.until(lambda account: "a" in account.finished)


async def test_prefill_and_decode_workers_have_their_roles_and_metrics(cluster: Cluster) -> None:
    port = free_port()
    for role in ("prefill", "decode"):
        options = ["--metrics-port", str(port)] if role == "prefill" else []
        cluster.start_worker(*options, worker_id=role, role=role, module=f"services.{role}_worker")
    records = await cluster.wait_registered("prefill", "decode")
    assert {name: records[name].info.role for name in ("prefill", "decode")} == {
        "prefill": "prefill",
        "decode": "decode",
    }
    async with attach(records["prefill"].address) as driver:
        await driver.submit(submission("a", max_tokens=7))
        await driver.until(lambda account: "a" in account.finished)
    text = await asyncio.to_thread(_fetch, port, "/metrics")
    assert 'slos_worker_output_tokens_total{worker="prefill"} 7.0' in text
    assert 'slos_worker_requests{worker="prefill"} 0.0' in text


def _fetch(port: int, path: str) -> str:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "steam"], "'steam' is not one of"),
        (["--model-path", "/nowhere"], "does not exist"),
        (["--role", "boss"], "'boss' is not one of"),
        (["--kv-blocks", "0"], "is not in the range"),
        (["--redis-url", "http://:secret@x"], "'http://:***@x' is no Redis URL"),
    ],
)
def test_wrong_options_are_named(options: list[str], words: str) -> None:
    result = CliRunner().invoke(command("decode", "decode-worker"), options)
    assert result.exit_code == 2
    assert words in result.output


def test_settings_that_cannot_work_end_with_one_clear_line(cluster: Cluster) -> None:
    wrong = {
        ("--engine", "vllm"): "needs a model folder",
        ("--policy", "nonsense"): "unknown policy",
        ("--tls-cert", "/nowhere.pem"): "both the certificate and the key",
        ("--host", "192.0.2.1"): "Cannot listen on",
    }
    workers = [cluster.start_worker(*options, worker_id=f"wrong{number}") for number, options in enumerate(wrong)]
    for worker, words in zip(workers, wrong.values(), strict=True):
        assert worker.exit_code(60) == 1
        assert words in worker.text()
        assert "Traceback" not in worker.text()


def test_port_in_use_is_said(cluster: Cluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        worker = cluster.start_worker("--port", str(taken.getsockname()[1]), worker_id="late")
        assert worker.exit_code(60) == 1
    assert "is the port in use" in worker.text()


def test_no_process_is_left_behind(cluster: Cluster, redis_server: EmbeddedRedis) -> None:
    with Cluster(cluster.folder / "inner", redis_server) as inner:
        worker = inner.start_worker()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.process.pid, 0)
