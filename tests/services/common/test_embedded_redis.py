from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from services.common.embedded_redis import EmbeddedRedis, EmbeddedRedisError, free_port


def client(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=5)


def test_data_survives_an_orderly_restart_on_the_same_address(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "with space", password='quote " and : @')
    server.start()
    url = server.url
    try:
        client(server).set("key", "value")
        server.stop()
        server.start()
        assert server.url == url
        assert client(server).get("key") == "value"
    finally:
        server.stop()
    with pytest.raises(redis.ConnectionError):
        client(server).ping()


def test_running_server_is_found_and_left_alone(tmp_path: Path) -> None:
    first, second = EmbeddedRedis(tmp_path), EmbeddedRedis(tmp_path)
    first.start()
    try:
        second.start()
        assert second.url == first.url
        assert (first.owned, second.owned) == (True, False)
        second.stop()
        client(first).ping()
    finally:
        first.stop()


def test_address_left_by_a_crash_is_not_trusted(tmp_path: Path) -> None:
    first, other = EmbeddedRedis(tmp_path / "a"), EmbeddedRedis(tmp_path / "b")
    first.start()
    first.kill()
    other.start()
    (tmp_path / "a" / "redis.address").write_text((tmp_path / "b" / "redis.address").read_text())
    again = EmbeddedRedis(tmp_path / "a")
    try:
        again.start()
        assert again.owned
        assert again.url != other.url
    finally:
        again.stop()
        other.stop()


def test_unix_socket(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path, unix_socket=True)
    server.start()
    try:
        assert server.url.startswith("unix://")
        client(server).ping()
    finally:
        server.stop()


def test_port_in_use_is_said(tmp_path: Path) -> None:
    first = EmbeddedRedis(tmp_path / "a")
    first.start()
    try:
        port = int(first.url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(EmbeddedRedisError, match=r"did not start.*in use") as caught:
            EmbeddedRedis(tmp_path / "b", port=port, password="hidden").start()
        assert "hidden" not in str(caught.value)
    finally:
        first.stop()


def test_program_serves_until_its_signal(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "services.common.embedded_redis", "--data-dir", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == f"redis://127.0.0.1:{port}/0"
            pid = int(redis.Redis(port=port, socket_timeout=5).info("server")["process_id"])
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
