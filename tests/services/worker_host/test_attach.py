"""One shared worker process: what a controller can do on its stream, and what it cannot."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from engine.emulated.config import EmulatedConfig
from engine.emulated.output import OutputScript
from engine.protocol import EngineRequest, SamplingSpec
from protos.slos.v1 import common_pb2, worker_pb2
from services.common.store import Store
from tests.fixtures.cluster import Cluster, eventually
from tests.services.worker_host.driver import Account, attach, next_fence, submission

BLOCKS = 400
CONFIG = EmulatedConfig(kv_blocks=BLOCKS, max_model_len=2000)


@pytest.fixture(scope="module")
def address(cluster: Cluster) -> str:
    cluster.start_worker("--kv-blocks", str(BLOCKS), "--max-model-len", "2000", "--lease-s", "5", worker_id="shared")
    records = asyncio.run(cluster.wait_registered("shared"))
    return records["shared"].address


def script(request_id: str, prompt: list[int], count: int, temperature: float = 0.0) -> list[int]:
    """The first tokens that any emulated replica says to a prompt."""
    request = EngineRequest(
        request_id=request_id,
        token_ids=tuple(prompt),
        prompt_tokens=len(prompt),
        sampling=SamplingSpec(temperature=temperature, ignore_eos=True),
        standard=True,
        arrival_s=0.0,
        first_token_due_s=0.0,
        tpot_s=1.0,
    )
    says = OutputScript(request, replace(CONFIG))
    return [says.token(position) for position in range(count)]


async def test_tokens_come_with_state_and_a_finish(address: str) -> None:
    async with attach(address) as driver:
        assert driver.welcome.info.worker_id == "shared"
        assert driver.welcome.info.emulated
        assert driver.welcome.info.kv_blocks == BLOCKS
        assert driver.welcome.request_ids == []
        await driver.submit(submission("a", [9] * 100, max_tokens=30))
        await driver.until(lambda account: "a" in account.finished)
        assert driver.account.tokens["a"] == script("a", [9] * 100, 30)
        assert driver.account.finished["a"].finish_reason == common_pb2.FINISH_REASON_LENGTH
        assert driver.account.text["a"]
        assert driver.account.free_blocks == BLOCKS


async def test_step_event_counts_the_batch(address: str) -> None:
    async with attach(address) as driver:
        await driver.submit(submission("a", list(range(500, 600)), max_tokens=5))
        steps = []
        while not driver.account.finished:
            steps.append((await driver.next()).step)
        assert [(step.batch_tokens, step.batch_requests) for step in steps] == [(100, 1)] + [(1, 1)] * 4
        assert all(step.duration_us >= 1000 for step in steps)
        assert all(step.age_us < 10_000_000 for step in steps)
        assert steps[0].requests[0].context_tokens == 100
        assert steps[0].requests[0].kv_blocks == 7


async def test_health_and_reflection(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "slos.v1.Worker"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=10)
        names = [service.name async for reply in call for service in reply.list_services_response.service]
        assert "slos.v1.Worker" in names


@pytest.mark.parametrize("seed", range(4))
async def test_broken_streams_lose_no_token_and_double_none(address: str, seed: int) -> None:
    """However the stream is cut, resumed and acknowledged, the events make one gapless sequence."""
    draw = random.Random(seed)
    fence, account = next_fence(), Account()
    wanted: dict[str, tuple[list[int], int]] = {}
    async with attach(address, fence=fence) as driver:
        account.last_event = driver.account.last_event
    cuts = 0
    while len(wanted) < 24 or account.finished.keys() < wanted.keys():
        async with attach(address, account, fence=fence) as driver:
            assert set(driver.welcome.request_ids) <= wanted.keys()
            for _ in range(draw.randint(0, 5)):
                if len(wanted) < 24:
                    request_id, count = f"s{seed}-{len(wanted)}", draw.randint(1, 60)
                    wanted[request_id] = ([draw.randint(8, 99) for _ in range(draw.randint(1, 40))], count)
                    await driver.submit(submission(request_id, wanted[request_id][0], max_tokens=count))
            await driver.settle()
            for _ in range(draw.randint(0, 15)):
                if account.finished.keys() >= wanted.keys():
                    break
                await driver.next()
            if draw.random() < 0.5:
                await driver.acknowledge()
            if draw.random() < 0.3:
                await driver.settle()
            driver.cut()
            cuts += 1
    assert cuts > 3
    for request_id, (prompt, count) in wanted.items():
        assert account.tokens[request_id] == script(request_id, prompt, count)
    assert account.free_blocks == BLOCKS


async def test_new_leader_gets_what_the_old_one_did_not_acknowledge(address: str) -> None:
    async with attach(address) as driver:
        await driver.submit(submission("a", max_tokens=10))
        await driver.until(lambda account: "a" in account.finished)
        seen = driver.account
        first = seen.last_event
    fresh = Account()
    async with attach(address, fresh, controller_id="successor") as driver:
        fresh.last_event = driver.welcome.oldest_event - 1
        await driver.until(lambda account: account.last_event >= first)
    assert fresh.tokens["a"] == seen.tokens["a"]


async def test_newer_fencing_token_takes_the_place_of_an_older_one(address: str) -> None:
    old, new = next_fence(), next_fence()
    async with (
        attach(address, fence=old, controller_id="old") as first,
        attach(address, fence=new, controller_id="new"),
    ):
        status, text = await first.end()
        assert status is grpc.StatusCode.ABORTED
        assert "new" in text
        with pytest.raises((grpc.aio.AioRpcError, EOFError), match="newer controller leads"):
            async with attach(address, fence=old, controller_id="old"):
                pass
        with pytest.raises((grpc.aio.AioRpcError, EOFError), match="same fencing token"):
            async with attach(address, fence=new, controller_id="twin"):
                pass


async def test_same_controller_takes_its_own_place_again(address: str) -> None:
    fence = next_fence()
    async with attach(address, fence=fence) as first, attach(address, fence=fence) as second:
        assert (await first.end())[0] is grpc.StatusCode.ABORTED
        await second.submit(submission("a"))
        await second.until(lambda account: "a" in account.finished)


async def test_other_version_is_refused(address: str) -> None:
    with pytest.raises((grpc.aio.AioRpcError, EOFError), match="run both from the same release"):
        async with attach(address, version=99):
            pass


async def test_first_command_must_be_hello(address: str) -> None:
    from protos.slos.v1 import worker_pb2_grpc

    async with grpc.aio.insecure_channel(address) as channel:
        call = worker_pb2_grpc.WorkerStub(channel).Attach()
        await call.write(worker_pb2.Command(ping=worker_pb2.Ping(nonce=1)))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_that_are_no_command_are_refused_and_the_stream_goes_on(address: str) -> None:
    """A stream of plain bytes, so that a test can send what no controller would."""
    async with grpc.aio.insecure_channel(address) as channel:
        attach_raw = channel.stream_stream("/slos.v1.Worker/Attach", response_deserializer=worker_pb2.Event.FromString)
        first = attach_raw()
        await first.write(b"\xff\xff")
        assert await first.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "well-formed" in await first.details()

        second = attach_raw()
        hello = worker_pb2.Hello(proto_version=1, fencing_token=next_fence(), controller_id="raw")
        good = worker_pb2.Command(submit=submission("after-malformed", max_tokens=3))
        for raw in (worker_pb2.Command(hello=hello).SerializeToString(), b"\xff\xff", good.SerializeToString()):
            await second.write(raw)
        reasons, finished = [], False
        async with asyncio.timeout(20):
            while not finished:
                event = await second.read()
                if event.WhichOneof("event") == "rejected":
                    reasons.append(event.rejected.reason)
                finished = any(
                    update.request_id == "after-malformed" and update.finish_reason for update in event.step.requests
                )
        assert "malformed" in reasons[-1]
        second.cancel()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"token_ids": [], "prompt_tokens": 0}, grpc.StatusCode.INVALID_ARGUMENT, "prompt_tokens"),
        ({"prompt_tokens": 4}, grpc.StatusCode.INVALID_ARGUMENT, "prompt_tokens"),
        ({"token_ids": [9, -5], "prompt_tokens": 2}, grpc.StatusCode.INVALID_ARGUMENT, "negative"),
        ({"token_ids": [9] * 2000, "prompt_tokens": 2000}, grpc.StatusCode.INVALID_ARGUMENT, "window of 2000"),
        ({"tpot_us": 0}, grpc.StatusCode.INVALID_ARGUMENT, "tpot_us"),
        ({"admission": 0}, grpc.StatusCode.INVALID_ARGUMENT, "admission"),
        ({"sampling": common_pb2.Sampling(json_object=True)}, grpc.StatusCode.UNIMPLEMENTED, "structured"),
        ({"kv_transfer": worker_pb2.KvTransfer()}, grpc.StatusCode.INVALID_ARGUMENT, "transfer_id"),
    ],
)
async def test_bad_submissions_are_rejected_and_leave_others_alone(
    address: str, changes: dict[str, object], code: grpc.StatusCode, words: str
) -> None:
    async with attach(address) as driver:
        await driver.submit(submission("good", max_tokens=30))
        await driver.submit(submission("bad", **changes))
        await driver.until(lambda account: "bad" in account.rejected and "good" in account.finished)
        rejected = driver.account.rejected["bad"]
        assert rejected.code == code.value[0]
        assert words in rejected.reason
        assert len(driver.account.tokens["good"]) == 30
        assert driver.account.free_blocks == BLOCKS


async def test_duplicate_and_empty_ids_are_rejected(address: str) -> None:
    async with attach(address) as driver:
        await driver.submit(submission("a", max_tokens=200))
        await driver.submit(submission("a"))
        await driver.submit(submission(""))
        await driver.until(lambda account: len(account.rejected) == 2)
        assert driver.account.rejected["a"].code == grpc.StatusCode.ALREADY_EXISTS.value[0]
        assert "request_id" in driver.account.rejected[""].reason
        await driver.cancel("a")
        await driver.until(lambda account: "a" in account.finished)


async def test_commands_that_make_no_sense_are_answered_and_do_no_harm(address: str) -> None:
    async with attach(address) as driver:
        for command in (
            {},
            {"hello": worker_pb2.Hello(proto_version=1)},
            {"set_role": worker_pb2.SetRole(role="boss")},
            {"configure": worker_pb2.Configure(policy="no such policy")},
            {"configure": worker_pb2.Configure(time_margin=0.5)},
            {"configure": worker_pb2.Configure(best_effort_floor=7.0)},
        ):
            driver.account.rejected.clear()
            await driver.send(**command)
            await driver.until(lambda account: "" in account.rejected)
            assert driver.account.rejected[""].reason
        for unknown in (
            {"cancel": worker_pb2.CancelCommand(request_id="nobody")},
            {"promote": worker_pb2.Promote(request_id="nobody")},
            {"relegate": worker_pb2.Relegate(request_id="nobody")},
            {"ack": worker_pb2.Ack(event=1 << 60)},
        ):
            await driver.send(**unknown)
        await driver.submit(submission("a"))
        await driver.until(lambda account: "a" in account.finished)


async def test_cancel_storm_leaks_no_block_and_answers_every_request_once(address: str) -> None:
    draw = random.Random(7)
    async with attach(address) as driver:
        ids = [f"storm-{number}" for number in range(200)]
        for request_id in ids:
            prompt = [draw.randint(8, 99) for _ in range(draw.randint(1, 120))]
            best_effort = draw.random() < 0.5
            await driver.submit(submission(request_id, prompt, max_tokens=300, standard=not best_effort))
            if draw.random() < 0.5:
                await driver.cancel(request_id)
        for request_id in draw.sample(ids, len(ids)):
            await driver.cancel(request_id)
        await driver.until(lambda account: account.finished.keys() == set(ids))
        assert not driver.account.rejected
        await driver.submit(submission("after", max_tokens=3))
        await driver.until(lambda account: "after" in account.finished)
        assert driver.account.free_blocks == BLOCKS
    async with attach(address) as driver:
        assert driver.welcome.request_ids == []


async def test_drain_finishes_what_runs_and_takes_nothing_new(address: str, store: Store) -> None:
    async with attach(address) as driver:
        await driver.submit(submission("running", max_tokens=150))
        await driver.send(drain=worker_pb2.Drain(draining=True))
        await driver.submit(submission("late"))
        await driver.until(lambda account: "late" in account.rejected)
        assert driver.account.rejected["late"].code == grpc.StatusCode.UNAVAILABLE.value[0]
        await driver.until(lambda account: account.heard("drained"))
        assert len(driver.account.tokens["running"]) == 150
        await eventually(store, "shared", lambda record: record.info.draining)
        await driver.send(drain=worker_pb2.Drain(draining=False))
        await driver.submit(submission("again"))
        await driver.until(lambda account: "again" in account.finished)


async def test_role_changes_while_requests_run(address: str, store: Store) -> None:
    async with attach(address) as driver:
        await driver.submit(submission("running", max_tokens=100))
        await driver.send(set_role=worker_pb2.SetRole(role="decode"))
        await driver.until(lambda account: account.heard("role_changed"))
        await eventually(store, "shared", lambda record: record.info.role == "decode")
        await driver.until(lambda account: "running" in account.finished)
        assert len(driver.account.tokens["running"]) == 100
        await driver.send(set_role=worker_pb2.SetRole(role="both"))
        await driver.until(lambda account: len(account.others) == 2)


async def test_promote_and_relegate_reach_the_engine(address: str) -> None:
    """The standard one of two requests that do not fit together keeps its memory."""
    async with attach(address) as driver:
        for name, standard in (("x", True), ("y", False)):
            prompt = [20 if standard else 21] * 1900
            await driver.submit(submission(name, prompt, max_tokens=90, standard=standard))
        await driver.send(relegate=worker_pb2.Relegate(request_id="x"))
        await driver.send(promote=worker_pb2.Promote(request_id="y", ttft_remaining_us=10_000_000))
        await driver.until(lambda account: account.finished.keys() == {"x", "y"})
        assert len(driver.account.tokens["x"]) == len(driver.account.tokens["y"]) == 90
        assert driver.account.free_blocks == BLOCKS


async def test_failover_continues_in_the_middle(address: str) -> None:
    prompt = [30, 31, 32]
    whole = script("a", prompt, 40)
    async with attach(address) as driver:
        resumed = submission("a", prompt + whole[:17], max_tokens=40, prompt_tokens=3, next_token_remaining_us=1000)
        await driver.submit(resumed)
        await driver.until(lambda account: "a" in account.finished)
        assert driver.account.tokens["a"] == whole[17:]
