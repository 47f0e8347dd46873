"""A disaggregated cluster as the README starts and operates it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.errors import Exit
from tests import cluster as clusters
from tests.cluster import Cluster, run_slosctl


@pytest.fixture(scope="module")
def pair(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    options = ("--engine", "emulated", "--topology", "disaggregated", "--prefill", "1", "--decode", "1")
    running = clusters.start(tmp_path_factory.mktemp("pair"), model_folder, *options)
    try:
        yield running
    finally:
        clusters.stop(running)


def test_pair_serves_and_advises_and_changes_roles(pair: Cluster) -> None:
    refused = run_slosctl(pair.folder, "advise")
    assert refused.returncode == Exit.REFUSED
    assert "no load to judge by" in refused.stderr

    # The default class asks for the first token within five prefills of so short a prompt: no time to hand it over.
    answer = pair.slosctl_json("chat", "--ttft-ms", "2000", "--max-tokens", "8", "What is a deadline?")
    history = "\n".join(pair.slosctl_json("requests", "show", answer["request_id"])["history"])
    assert "prefill-0" in history
    assert "decode-1" in history

    advice = pair.slosctl_json("advise")
    assert (advice["requests"], advice["prefill"], advice["decode"]) == (1, 1, 1)
    assert "prefill workers per decode worker" in pair.slosctl("advise", "--workers", "4")

    assert "role decode" in pair.slosctl("replicas", "set-role", "prefill-0", "decode")
    assert "role prefill" in pair.slosctl("replicas", "set-role", "decode-1", "prefill")
    roles = {replica["replica"]: replica["role"] for replica in pair.slosctl_json("replicas", "ls")}
    assert roles == {"prefill-0": "decode", "decode-1": "prefill"}
    assert pair.slosctl_json("chat", "--max-tokens", "8", "And what is a promise?")["request_id"]


def test_a_drained_replica_is_struck_off(pair: Cluster) -> None:
    """Last in this module: the pair is one afterwards."""
    assert pair.slosctl_json("replicas", "drain", "decode-1", "--wait", "30")["state"] == "drained"
    assert pair.slosctl_json("replicas", "rm", "decode-1") == {"removed": "decode-1"}
    assert {replica["replica"] for replica in pair.slosctl_json("replicas", "ls")} == {"prefill-0"}
