from __future__ import annotations

from pathlib import Path

import pytest

from engine.kv.config import KvConfig
from engine.vllm.config import VllmConfig
from engine.vllm.kv.settings import rank_address, read_extra, with_kv_exchange


def test_settings_come_back_from_vllms_configuration() -> None:
    kv = KvConfig(host="127.0.0.2", port=7100, lease_s=9.0, message_bytes=1 << 20, checksum=True)
    config = with_kv_exchange(VllmConfig(model_dir=Path("/models/m")), "w", kv)
    assert config.kv_connector is not None
    assert config.kv_connector.extra is not None
    assert read_extra(config.kv_connector.extra, tp_rank=0) == kv
    assert config.kv_address == "127.0.0.2:7100"


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_ranks_listen_side_by_side_and_find_each_other(rank: int) -> None:
    config = with_kv_exchange(VllmConfig(model_dir=Path("/models/m")), "w", KvConfig(port=7100))
    assert config.kv_connector is not None
    assert config.kv_connector.extra is not None
    own = read_extra(config.kv_connector.extra, rank)
    assert rank_address(config.kv_address, rank) == f"{own.host}:{own.port}"


def test_address_without_a_port_is_left_for_the_dialler_to_refuse() -> None:
    assert rank_address("nowhere", 1) == "nowhere"
