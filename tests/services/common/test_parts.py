"""The small parts: clock, logs, model folder, settings."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from services.common import clock
from services.common.logging import LineFormatter
from services.common.metrics import CollectorRegistry, Counter, exposition
from services.common.model_folder import tokenizer_hash
from services.common.security import SecuritySettings
from services.common.settings import CONTEXT, LogSettings, logging_options, security_options, store_options
from services.common.store import StoreSettings


@given(due_in_s=st.floats(-1000, 1000), sent_s=st.floats(0, 1e6), offset_s=st.floats(-1e6, 1e6), way_s=st.floats(0, 2))
def test_deadline_means_the_same_moment_on_both_clocks(
    due_in_s: float, sent_s: float, offset_s: float, way_s: float
) -> None:
    """The receiver's clock differs by offset_s and the message takes half of the round trip."""
    remaining = clock.remaining_us(sent_s + due_in_s, sent_s)
    received_s = sent_s + way_s + offset_s
    assert clock.due_s(remaining, received_s, 2 * way_s) == pytest.approx(sent_s + due_in_s + offset_s, abs=1e-5)


def log_record(message: str, **extra: object) -> logging.LogRecord:
    return logging.getLogger("x").makeRecord("x", logging.INFO, "f", 1, message, (), None, extra=extra)


def test_log_line_is_one_line_with_its_facts() -> None:
    line = LineFormatter("w1", as_json=False).format(log_record("two\nlines", worker="w 1", count=3, empty=""))
    assert "\n" not in line
    assert line.endswith('INFO w1 x: two\\nlines worker="w 1" count=3 empty=""')


def test_json_log_line_parses_and_keeps_exceptions() -> None:
    try:
        raise ValueError("bad\nthing")
    except ValueError:
        record = log_record("failed", request="r")
        record.exc_info = sys.exc_info()
    for as_json in (True, False):
        line = LineFormatter("w1", as_json).format(record)
        assert "\n" not in line
        assert "ValueError" in line
    parsed = json.loads(LineFormatter("w1", as_json=True).format(record))
    assert (parsed["service"], parsed["message"], parsed["request"]) == ("w1", "failed", "r")


def test_tokenizer_hash_follows_the_tokenizers_files_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    first = tokenizer_hash(tmp_path)
    (tmp_path / "model.safetensors").write_text("weights")
    assert tokenizer_hash(str(tmp_path)) == first
    (tmp_path / "tokenizer.json").write_text("{ }")
    second = tokenizer_hash(tmp_path)
    assert second != first
    (tmp_path / "chat_template.jinja").write_text("")
    assert tokenizer_hash(tmp_path) not in (first, second)
    assert len(first) == 64


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        tokenizer_hash(tmp_path)


def test_metrics_are_shown_in_prometheus_text() -> None:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    body, kind = exposition(registry)
    assert b"things_total 3.0" in body
    assert kind.startswith("text/plain")


@click.command(context_settings=CONTEXT)
@store_options
@security_options
@logging_options
@click.option("--own", default=1)
def program(store: StoreSettings, security: SecuritySettings, logs: LogSettings, own: int) -> None:
    click.echo(repr((store, security, logs, own)))


def test_options_become_objects_and_beat_the_environment() -> None:
    environment = {"SLOS_REDIS_URL": "redis://env/0", "SLOS_TOKEN": "env", "SLOS_OWN": "5", "SLOS_LOG_LEVEL": "DEBUG"}
    result = CliRunner().invoke(program, ["--redis-url", "redis://option/0", "--tls-ca", "ca.pem"], env=environment)
    assert result.exit_code == 0
    expected = (
        StoreSettings(url="redis://option/0"),
        SecuritySettings(token="env", tls_ca="ca.pem"),
        LogSettings("DEBUG", False),
        5,
    )
    assert result.output.strip() == repr(expected)


def test_help_names_every_shared_option() -> None:
    text = CliRunner().invoke(program, ["--help"]).output
    for option in ("--redis-url", "--redis-prefix", "--redis-ca", "--tls-cert", "--tls-ca", "--token", "--log-json"):
        assert option in text
