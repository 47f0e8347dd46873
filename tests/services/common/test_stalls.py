"""An event loop that stands still is reported with the place, and nothing else is."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from services.common.stalls import watched


def hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_loop_that_stands_still_is_reported_with_the_place(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "services.common.stalls"), watched(limit_s=0.5):
        await asyncio.sleep(0.3)
        hold_the_loop(2.0)
        await asyncio.sleep(0.3)
    said = [record.getMessage() for record in caplog.records]
    assert any("hold_the_loop" in message or "did not run" in message for message in said)
    assert "goes on after" in said[-1]


async def test_a_loop_that_comes_round_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "services.common.stalls"), watched(limit_s=10.0):
        for _ in range(10):
            await asyncio.sleep(0.05)
    assert caplog.records == []
