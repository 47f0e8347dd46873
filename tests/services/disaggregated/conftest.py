from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from protos.slos.v1 import client_pb2, common_pb2
from scheduling.time_model import TimeModel
from tests.fixtures.controller import ControlledCluster
from tests.services.controller.load import Answer, generate_request, prompt_of, run_all

STEPS = TimeModel(((0.004, 4e-5, 0.0, 0.0, 0.0, 0.0),), source="assumed: for tests")
KV = ("--kv-heartbeat-s", "0.1", "--kv-io-timeout-s", "1", "--kv-lease-s", "2", "--kv-checksum")
BLOCK_BYTES = 32_768
"""Large enough that a prompt's KV takes several messages, so that a test can hit a transfer under way."""

Undisturbed = Callable[[int], list[list[int]]]


class Pairs:
    """A controller with prefill and decode workers on emulated engines, over the real KV transport."""

    def __init__(self, cluster: ControlledCluster) -> None:
        """Nothing runs yet."""
        self.cluster = cluster
        (cluster.folder / "steps.json").write_text(STEPS.to_json())

    def start(self, worker_id: str, *arguments: str) -> None:
        """Start a worker; its role is the first part of its name."""
        role = worker_id.split("-")[0]
        self.cluster.start_worker(worker_id, *arguments, role=role)

    def restore(self, *worker_ids: str) -> None:
        """Let exactly these workers run and be ready."""
        for name in list(self.cluster.replicas()):
            if name not in worker_ids:
                self.cluster.end(name)
        for name in worker_ids:
            if not self.cluster.runs(name):
                self.cluster.end(name)
                self.start(name)
        self.cluster.until(
            lambda: all(
                name in (known := self.cluster.replicas()) and known[name].state == "ready" for name in worker_ids
            ),
            f"{worker_ids} are ready",
        )

    def settled(self) -> None:
        """Nothing runs, and every KV block of every live worker is free again."""
        self.cluster.settled()

        def free() -> bool:
            ready = [replica for replica in self.cluster.replicas().values() if replica.state == "ready"]
            return not any(replica.kv_used_tokens for replica in ready)

        self.cluster.until(free, "all KV blocks are free", timeout_s=20.0)

    def handed_over(self) -> int:
        """Requests whose KV came from another worker."""
        return self.cluster.status().kv_handovers

    def recomputed(self) -> int:
        """Requests whose KV did not come and was computed by the decode worker."""
        return self.cluster.status().kv_recomputed


def loose() -> common_pb2.SloSpec:
    """An objective that a pair can always promise: on a busy machine the class's own is only just within reach."""
    return common_pb2.SloSpec(slo_class="chatbot", ttft_ms=20_000.0, tpot_ms=5_000.0)


def load(count: int, prefix: str, max_tokens: int = 40) -> list[client_pb2.GenerateRequest]:
    """Requests with prompts of up to 300 tokens, inside one block and over many chunks."""
    return [
        generate_request(prompt_of(seed, 2, 300), request_id=f"{prefix}-{seed}", max_tokens=max_tokens, slo=loose())
        for seed in range(count)
    ]


def tokens(answers: list[Answer]) -> list[list[int]]:
    """Token ids of answers that all ended as they should."""
    failed = [answer.error.details() for answer in answers if answer.error is not None]
    assert not failed
    assert {answer.finish for answer in answers} == {"length"}
    return [answer.token_ids for answer in answers]


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairs]:
    folder = tmp_path_factory.mktemp("pairs")
    arguments = (
        *KV,
        # Tests send the same prompts, and whoever holds one serves it alone.
        "--no-prefix-caching",
        "--kv-block-bytes",
        str(BLOCK_BYTES),
        "--lease-s",
        "1",
        "--time-model",
        str(folder / "steps.json"),
    )
    cluster = ControlledCluster(folder, arguments, ("--leader-ttl-s", "1.5"))
    try:
        pairs = Pairs(cluster)
        pairs.start("prefill-0")
        pairs.start("decode-0")
        cluster.start_controller(wait_for=2)
        yield pairs
    finally:
        cluster.close()


@pytest.fixture(scope="package")
def undisturbed(shared: Pairs) -> Undisturbed:
    """What greedy decoding gives for the prompts of load() when nothing happens, KV handed over."""
    known: list[list[int]] = []

    def expected(count: int) -> list[list[int]]:
        if len(known) < count:
            shared.restore("prefill-0", "decode-0")
            known[:] = tokens(run_all(shared.cluster.grpc_address, load(count, "undisturbed"), gap_s=0.02))
        return known[:count]

    return expected
