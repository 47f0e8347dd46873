from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from engine.kv.config import KvConfig
from engine.protocol import EngineError, KvTransferSpec
from engine.vllm.config import VllmConfig
from engine.vllm.kv.nixl_settings import transfer_params, with_nixl
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


def test_nixl_needs_its_package_and_says_so() -> None:
    if importlib.util.find_spec("nixl") is None:
        with pytest.raises(EngineError, match="needs the package nixl"):
            with_nixl(VllmConfig(model_dir=Path("/models/m")), KvConfig())
        return
    config = with_nixl(VllmConfig(model_dir=Path("/models/m")), KvConfig(host="127.0.0.2", port=7100, lease_s=1.0))
    assert config.kv_address == "127.0.0.2:7100"
    assert config.kv_connector is not None
    assert config.kv_connector.needs_handle
    assert config.kv_connector.environment == {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.2",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": "7100",
    }


def test_a_decode_half_tells_vllm_what_the_prefill_half_has_said() -> None:
    producer = KvTransferSpec("t", 1, True, "d", "h:1", 5.0)
    consumer = KvTransferSpec("t", 1, False, "p", "h:2", 5.0)
    assert transfer_params(producer, "")["do_remote_decode"]
    handle = {"do_remote_prefill": True, "remote_port": 7100, "remote_block_ids": [[1, 2]]}
    assert transfer_params(consumer, json.dumps(handle)) == {**handle, "producer": False}
    assert transfer_params(consumer, "") == {"producer": False}
