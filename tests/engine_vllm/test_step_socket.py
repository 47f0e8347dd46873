"""The socket between the two processes, both ends in one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.protocol import EngineError
from engine.vllm.messages import (
    Configure,
    DecodeRecords,
    EngineFacts,
    Promote,
    Relegate,
    RequestRecord,
    StepRecord,
)
from engine.vllm.step_socket import SchedulerSocket, StepSocketClient

FACTS = EngineFacts(pid=1, total_blocks=99, block_size=16, max_spec_tokens=1)

DECODES = DecodeRecords(["a", "b"], [7, 8], [2, 3], [11, 12], [1, 2], [0, 1], [4, 0], planned_tokens=1)


def record(step: int) -> StepRecord:
    """Record with a large payload: several fill the kernel's buffer."""
    requests = [RequestRecord(f"request-{n}", tokens=[n] * 50, produced=50) for n in range(200)]
    shape = (1.0, 1.0, 0.0, 0.0, 0.0)
    return StepRecord(step, 0.0, 1.0, 0.1, 0.1, 0.0, 0.0, 50, 1, 1, shape, requests, decodes=DECODES)


async def test_commands_go_down_and_numbered_records_come_up(tmp_path: Path) -> None:
    path = str(tmp_path / "steps.sock")
    server = SchedulerSocket(path, FACTS)
    for step in range(3):
        server.send(record(step))
    client = await StepSocketClient.connect(path, timeout_s=5)
    assert client.facts == FACTS
    sent = [Promote("a", 1.5, None), Relegate("b"), Configure(policy="slos", time_margin=1.1)]
    for command in sent:
        await client.send(command)
    # Nobody reads, and the sender is not held up.
    for step in range(3, 60):
        server.send(record(step))
    server.close()
    async with asyncio.timeout(20):
        came = [one async for one in client.records()]
    assert [one.step for one in came] == list(range(60))
    assert came[0] == record(0)
    b = RequestRecord("b", [8], 3, 0, 12, 2, preemptions=1, planned_tokens=1, scheduled_tokens=1)
    assert came[0].each()[1:] == [b, *record(0).requests]
    arrived = []
    async with asyncio.timeout(5):
        while len(arrived) < len(sent):
            arrived += server.commands()
            await asyncio.sleep(0.01)
    assert arrived == sent
    assert server.commands() == []
    await client.close()
    await client.close()


async def test_nobody_there_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not answer"):
        await StepSocketClient.connect(str(tmp_path / "nothing.sock"), timeout_s=5)
