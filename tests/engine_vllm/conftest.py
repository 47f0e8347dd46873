"""One real engine for all tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine.vllm.config import VllmConfig
from tests.engine_vllm.harness import Harness
from tests.engine_vllm.reference import Reference


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def engine(model_folder: Path) -> AsyncIterator[Harness]:
    """Engine with little KV, so that tests can fill it."""
    harness = Harness(
        VllmConfig(
            model_dir=model_folder,
            max_model_len=1024,
            max_num_batched_tokens=256,
            max_num_seqs=16,
            kv_blocks=27,
            policy="vllm-v1",
        )
    )
    await harness.start()
    try:
        yield harness
    finally:
        await harness.close()


@pytest.fixture(scope="package")
def reference(model_folder: Path) -> Reference:
    """The same model in transformers, float32."""
    return Reference(model_folder)
