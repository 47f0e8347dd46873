"""A prefill and a decode worker under one core: who is sent which half, and what happens when a half is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from protos.slos.v1 import common_pb2, worker_pb2
from services.common.embedded_redis import EmbeddedRedis
from services.controller.contract import ApiError
from services.controller.core import Core
from tests.services.controller.cores import LOOSE, ask, cancelled, core_over, step, submitted
from tests.services.controller.peer import Peer


@dataclass(slots=True)
class Pair:
    """A core with two peers that do only what the test says."""

    core: Core
    prefill: Peer
    decode: Peer

    def ask(self, request_id: str = "r", slo: common_pb2.SloSpec = LOOSE) -> asyncio.Task[list]:
        """Start a request; the task gives its messages."""
        return ask(self.core, request_id, slo)


@pytest.fixture
async def pair(redis_server: EmbeddedRedis, tmp_path: Path) -> AsyncIterator[Pair]:
    peers = {"prefill": Peer(), "decode": Peer()}
    facts = {role: {"role": role, "kv_address": f"kv-of-{role}:1"} for role in peers}
    async with core_over(redis_server, tmp_path, peers, **facts) as core:
        yield Pair(core, **peers)


async def test_both_halves_name_the_same_transfer(pair: Pair) -> None:
    asking = pair.ask()
    produce = (await pair.prefill.hear(submitted("r~p"))).submit
    consume = (await pair.decode.hear(submitted("r"))).submit
    assert produce.kv_transfer.transfer_id == consume.kv_transfer.transfer_id
    assert produce.kv_transfer.producer
    assert not consume.kv_transfer.producer
    assert (produce.kv_transfer.peer, produce.kv_transfer.peer_address) == ("decode", "kv-of-decode:1")
    assert (consume.kv_transfer.peer, consume.kv_transfer.peer_address) == ("prefill", "kv-of-prefill:1")
    assert produce.sampling.max_tokens == 1
    assert consume.sampling.max_tokens == 3
    # The prompt is due early enough for its KV to arrive in time.
    assert produce.ttft_remaining_us < consume.ttft_remaining_us
    assert pair.core.problems() == []

    pair.prefill.send(step(1, "r~p", [7], common_pb2.FINISH_REASON_LENGTH))
    async with asyncio.timeout(10):
        while not pair.core.live["r"].prefilled_s:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    pair.decode.send(step(1, "r", [5, 6, 7], common_pb2.FINISH_REASON_LENGTH, text="abc"))
    messages = await asking
    assert [token for message in messages for token in message.token_ids] == [5, 6, 7]
    assert messages[0].promise.replica == "decode"
    assert messages[-1].outcome.promise_kept
    # What was measured replaces the guess.
    assert pair.core.admission.transfers.model("prefill", "decode") != pair.core.admission.transfers.model("x", "y")


async def test_a_half_that_is_refused_takes_the_other_with_it_and_both_go_again(pair: Pair) -> None:
    asking = pair.ask()
    first = (await pair.prefill.hear(submitted("r~p"))).submit
    pair.prefill.send(
        worker_pb2.Event(number=1, rejected=worker_pb2.Rejected(request_id="r~p", code=14, reason="it is draining"))
    )
    await pair.decode.hear(cancelled("r"))
    pair.decode.send(step(1, "r", [], common_pb2.FINISH_REASON_CANCELLED))
    second = (await pair.prefill.hear(submitted("r~1~p"))).submit
    assert second.kv_transfer.transfer_id != first.kv_transfer.transfer_id
    await pair.decode.hear(submitted("r~1"))
    pair.prefill.send(step(2, "r~1~p", [7], common_pb2.FINISH_REASON_LENGTH))
    pair.decode.send(step(2, "r~1", [5], common_pb2.FINISH_REASON_STOP))
    assert (await asking)[-1].finish_reason == common_pb2.FINISH_REASON_STOP


async def test_a_lost_decode_worker_frees_the_prefill_half(pair: Pair) -> None:
    asking = pair.ask()
    await pair.prefill.hear(submitted("r~p"))
    pair.decode.welcome.incarnation = "two"
    pair.decode.hang_up()
    await pair.prefill.hear(cancelled("r~p"))
    pair.prefill.send(step(1, "r~p", [], common_pb2.FINISH_REASON_CANCELLED))
    # It goes again as soon as there is a place: a pair, or one worker alone.
    async with asyncio.timeout(10):
        while pair.core.live["r"].epoch == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert pair.core.problems() == []


async def test_cancel_reaches_both_halves(pair: Pair) -> None:
    asking = pair.ask()
    await pair.prefill.hear(submitted("r~p"))
    await pair.decode.hear(submitted("r"))
    assert await pair.core.cancel("r")
    await pair.prefill.hear(cancelled("r~p"))
    await pair.decode.hear(cancelled("r"))
    assert (await asking)[-1].finish_reason == common_pb2.FINISH_REASON_CANCELLED


async def test_a_recomputed_prompt_is_counted(pair: Pair) -> None:
    asking = pair.ask()
    await pair.prefill.hear(submitted("r~p"))
    pair.prefill.send(step(1, "r~p", [7], common_pb2.FINISH_REASON_LENGTH))
    pair.decode.send(step(1, "r", [], kv_recomputed=True, prefill_remaining=40))
    pair.decode.send(step(2, "r", [5], common_pb2.FINISH_REASON_STOP, kv_recomputed=True))
    messages = await asking
    assert messages[-1].finish_reason == common_pb2.FINISH_REASON_STOP
    history = list(pair.core.accounts.ledger.find("r").info.history)
    assert sum("KV did not arrive" in line for line in history) == 1


async def test_what_the_prefill_half_says_of_its_kv_is_passed_on_and_said_again_after_a_reconnection(
    pair: Pair,
) -> None:
    asking = pair.ask()
    await pair.prefill.hear(submitted("r~p"))
    await pair.decode.hear(submitted("r"))
    pair.prefill.send(step(1, "r~p", [7], common_pb2.FINISH_REASON_LENGTH, kv_handle="there"))

    def passed_on(command: worker_pb2.Command) -> bool:
        return command.hand_over.request_id == "r" and command.hand_over.kv_handle == "there"

    await pair.decode.hear(passed_on)
    pair.decode.commands.clear()
    pair.decode.welcome.request_ids[:] = ["r"]
    pair.decode.hang_up()
    await pair.decode.hear(passed_on)
    pair.decode.send(step(1, "r", [5], common_pb2.FINISH_REASON_STOP))
    assert (await asking)[-1].finish_reason == common_pb2.FINISH_REASON_STOP


async def test_what_a_pair_cannot_promise_one_worker_may_keep_to_itself(pair: Pair) -> None:
    # Long enough for the prompt on one worker, too short for the way to the other.
    asking = pair.ask(slo=common_pb2.SloSpec(slo_class="chatbot", ttft_ms=30.0))
    alone = (await pair.decode.hear(submitted("r"))).submit
    assert not alone.HasField("kv_transfer")
    assert alone.admission == common_pb2.ADMISSION_STANDARD
    pair.decode.send(step(1, "r", [5], common_pb2.FINISH_REASON_STOP))
    assert (await asking)[0].promise.replica == "decode"


async def test_what_nobody_can_promise_is_refused_with_the_reason(pair: Pair) -> None:
    tight = common_pb2.SloSpec(slo_class="chatbot", ttft_ms=5.0, on_miss=common_pb2.ON_MISS_REJECT)
    with pytest.raises(ApiError, match="first token late"):
        await pair.ask(slo=tight)
