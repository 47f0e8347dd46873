from __future__ import annotations

import pytest

from engine.protocol import EngineError
from services.worker_host.engines import EngineOptions, KvEnd, build
from services.worker_host.kv_options import KvOptions
from tests.fixtures.cluster import Cluster


@pytest.mark.parametrize(
    ("role", "asked", "open_"),
    [
        ("prefill", None, True),
        ("decode", None, True),
        ("both", None, False),
        ("both", True, True),
        ("decode", False, False),
    ],
)
def test_exchange_is_opened_for_workers_with_one_role_or_where_asked(
    role: str, asked: bool | None, open_: bool
) -> None:
    config = KvOptions(kv_exchange=asked).config(role, "127.0.0.1", "")
    assert (config is not None) is open_


def test_endpoint_takes_an_address_that_others_reach() -> None:
    def host(options: KvOptions, listens: str, advertise: str = "") -> str:
        config = options.config("decode", listens, advertise)
        assert config is not None
        return config.host

    assert host(KvOptions(), "127.0.0.2") == "127.0.0.2"
    assert host(KvOptions(kv_host="127.0.0.3"), "0.0.0.0") == "127.0.0.3"
    assert host(KvOptions(), "0.0.0.0", "localhost") == "127.0.0.1"
    with pytest.raises(EngineError, match="give --kv-host"):
        host(KvOptions(), "0.0.0.0", "no-such-host.invalid")


def test_settings_that_cannot_work_are_named() -> None:
    with pytest.raises(EngineError, match="heartbeat_s must be at most a third"):
        KvOptions(kv_heartbeat_s=3.0).config("decode", "127.0.0.1", "")


async def test_emulated_engine_is_built_with_its_exchange() -> None:
    config = KvOptions().config("prefill", "127.0.0.1", "")
    assert config is not None
    engine = build(EngineOptions(engine="emulated"), KvEnd("p", config)).engine
    info = await engine.start()
    await engine.close()
    assert info.kv_address.startswith("127.0.0.1:")
    other = build(EngineOptions(engine="emulated"), KvEnd("d", config, emulated_block_bytes=512)).engine
    other_info = await other.start()
    await other.close()
    assert "blocks of 16 tokens and 256 bytes" in info.kv_layout
    assert other_info.kv_layout != info.kv_layout


def test_emulated_engines_have_no_nixl() -> None:
    config = KvOptions().config("prefill", "127.0.0.1", "")
    assert config is not None
    with pytest.raises(EngineError, match="--kv-transport torch only"):
        build(EngineOptions(engine="emulated"), KvEnd("p", config, transport="nixl"))


async def test_registered_worker_tells_its_role_and_its_kv_address(cluster: Cluster) -> None:
    prefill = cluster.start_worker(role="prefill", module="services.prefill_worker")
    both = cluster.start_worker()
    records = await cluster.wait_registered(prefill.worker_id, both.worker_id)
    info = records[prefill.worker_id].info
    assert info.role == "prefill"
    assert info.kv_address.startswith("127.0.0.1:")
    assert records[both.worker_id].info.kv_address == ""
