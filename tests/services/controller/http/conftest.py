from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import tokenizers
import uvicorn
from tokenizers import decoders, models, pre_tokenizers

from services.controller.http.app import build_app
from services.controller.http.settings import HttpSettings
from services.controller.tokenizer import Catalog, ModelTokenizer, Thinking
from tests.services.controller.http.echo import EchoGateway

MODEL = "tiny"
THINKER = "tiny-thinker"
TOOLED = "tiny-tools"
HI = [{"role": "user", "content": "hi"}]
Serve = Callable[..., str]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS = "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}" + CHATML


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20)


def replying(catalog: Catalog, text: str, **options: Any) -> EchoGateway:
    return EchoGateway(catalog, reply=lambda call: text, **options)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen within 20 s"
        time.sleep(0.01)


def write_folder(folder: Path, template: str | None) -> Path:
    """A byte-level model folder: one token per byte, and the usual markers."""
    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root = tmp_path_factory.mktemp("models")
    return Catalog(
        [
            ModelTokenizer(MODEL, write_folder(root / "tiny", CHATML)),
            ModelTokenizer(THINKER, write_folder(root / "thinker", CHATML + "<think>\n"), Thinking()),
            ModelTokenizer(TOOLED, write_folder(root / "tooled", WITH_TOOLS)),
        ]
    )


@pytest.fixture
def gateway(catalog: Catalog) -> EchoGateway:
    return EchoGateway(catalog)


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Start real servers: serve(gateway, **settings) gives a base URL."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(gateway: EchoGateway, **settings: Any) -> str:
        app = build_app(gateway, gateway.catalog, HttpSettings(**settings))
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
        thread.start()
        deadline_s = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline_s:
            time.sleep(0.005)
        assert server.started
        started.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
