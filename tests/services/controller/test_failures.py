"""Workers, Redis and the controller die, drain and come back under load; clients get their tokens or a clear word."""

from __future__ import annotations

import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from protos.slos.v1 import admin_pb2, client_pb2
from tests.fixtures.controller import ControlledCluster, controlled
from tests.services.controller.load import Answer, generate_request, prompt_of, run_all

Undisturbed = Callable[..., list[list[int]]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlledCluster]:
    folder = tmp_path_factory.mktemp("failures")
    with controlled(folder, workers=2, controller_arguments=("--leader-ttl-s", "1.5")) as running:
        yield running


@pytest.fixture
def cluster(shared: ControlledCluster) -> ControlledCluster:
    """Two workers and a controller, whatever the test before has done to them."""
    shared.restore(workers=2)
    return shared


@pytest.fixture(scope="module")
def undisturbed(shared: ControlledCluster) -> Undisturbed:
    """What greedy decoding gives for the prompts of load() when nothing happens."""
    known: dict[int, list[list[int]]] = {}

    def expected(count: int, max_tokens: int = 40) -> list[list[int]]:
        if len(known.get(max_tokens, [])) < count:
            answers = run_all(shared.grpc_address, load(count, max_tokens, "undisturbed"), gap_s=0.02)
            known[max_tokens] = tokens(answers)
        return known[max_tokens][:count]

    return expected


def load(count: int, max_tokens: int = 40, prefix: str = "q") -> list[client_pb2.GenerateRequest]:
    return [
        generate_request(prompt_of(seed), request_id=f"{prefix}-{seed}", max_tokens=max_tokens) for seed in range(count)
    ]


def tokens(answers: list[Answer]) -> list[list[int]]:
    failed = [answer.error.details() for answer in answers if answer.error is not None]
    assert not failed
    assert {answer.finish for answer in answers} == {"length"}
    return [answer.token_ids for answer in answers]


def test_a_killed_worker_costs_no_request_and_no_token(cluster: ControlledCluster, undisturbed: Undisturbed) -> None:
    expected = undisturbed(40)
    answers = run_all(cluster.grpc_address, load(40), gap_s=0.02, after=(150, lambda: cluster.kill("worker-0")))
    assert tokens(answers) == expected
    assert {answer.last.outcome.promised for answer in answers if answer.last is not None} == {True}
    moved = [answer for answer in answers if len({promise.replica for promise in answer.promises}) > 1]
    assert moved  # the test would show nothing otherwise
    cluster.settled()
    assert cluster.replicas()["worker-0"].state == "lost"
    # It comes back as a new process and is used again.
    cluster.restore(workers=2)
    answers = run_all(cluster.grpc_address, load(10, prefix="again"))
    assert tokens(answers) == expected[:10]
    assert {promise.replica for answer in answers for promise in answer.promises} == {"worker-0", "worker-1"}


def test_when_every_worker_dies_requests_wait_for_the_next_one(
    cluster: ControlledCluster, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(8)

    def disaster() -> None:
        cluster.kill("worker-0")
        cluster.kill("worker-1")
        cluster.start_worker("worker-2")

    answers = run_all(cluster.grpc_address, load(8), after=(30, disaster))
    assert tokens(answers) == expected
    cluster.settled()


def test_requests_that_no_worker_survives_get_a_clear_error(tmp_path: Path) -> None:
    with controlled(tmp_path, workers=1, controller_arguments=("--failover-wait-s", "1")) as cluster:
        answers = run_all(cluster.grpc_address, load(4, 200), after=(60, lambda: cluster.kill("worker-0")))
        assert {answer.finish for answer in answers} == {"error"}
        assert all(answer.last is not None and "no replica came back" in answer.last.error for answer in answers)
        cluster.settled()
        (answer,) = run_all(cluster.grpc_address, load(1, prefix="new"))
        assert answer.error is not None
        assert answer.error.code() is grpc.StatusCode.UNAVAILABLE
        assert "worker-0 is lost" in str(answer.error.details())


def test_draining_under_load_finishes_what_runs_and_takes_nothing_new(
    cluster: ControlledCluster, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(40)

    def drain() -> None:
        drained = cluster.admin.DrainReplica(admin_pb2.ReplicaRequest(replica="worker-0"), timeout=5.0)
        assert drained.state == "draining"

    answers = run_all(cluster.grpc_address, load(40), gap_s=0.02, after=(150, drain))
    assert tokens(answers) == expected
    assert all(len({p.replica for p in answer.promises if p.replica}) == 1 for answer in answers)
    cluster.until(lambda: cluster.replicas()["worker-0"].state == "drained", "worker-0 is drained")
    answers = run_all(cluster.grpc_address, load(6, prefix="new"))
    assert {promise.replica for answer in answers for promise in answer.promises} == {"worker-1"}
    cluster.admin.UndrainReplica(admin_pb2.ReplicaRequest(replica="worker-0"), timeout=5.0)
    cluster.wait_for_replicas(2)
    cluster.settled()


def test_sigterm_drains_a_worker_and_the_others_take_over(cluster: ControlledCluster, undisturbed: Undisturbed) -> None:
    expected = undisturbed(30)
    status: list[int] = []
    answers = run_all(
        cluster.grpc_address, load(30), gap_s=0.02, after=(100, lambda: status.append(cluster.stop("worker-0")))
    )
    assert tokens(answers) == expected
    assert status == [0]
    cluster.until(lambda: "worker-0" not in cluster.replicas(), "worker-0 has left the registry")
    cluster.settled()


def test_only_a_drained_replica_can_be_removed(cluster: ControlledCluster) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        cluster.admin.RemoveReplica(admin_pb2.ReplicaRequest(replica="worker-0"), timeout=5.0)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "drain it first" in str(caught.value.details())
    cluster.admin.DrainReplica(admin_pb2.ReplicaRequest(replica="worker-0"), timeout=5.0)
    cluster.until(lambda: cluster.replicas()["worker-0"].state == "drained", "worker-0 is drained")
    cluster.admin.RemoveReplica(admin_pb2.ReplicaRequest(replica="worker-0"), timeout=5.0)
    time.sleep(2.5)  # long enough for the live worker to have registered again
    assert "worker-0" not in cluster.replicas()
    with pytest.raises(grpc.RpcError) as caught:
        cluster.admin.DrainReplica(admin_pb2.ReplicaRequest(replica="worker-9"), timeout=5.0)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "worker-1" in str(caught.value.details())


def ready(cluster: ControlledCluster) -> tuple[int, str]:
    """Status and body of /ready."""
    try:
        with urllib.request.urlopen(f"{cluster.url}/ready", timeout=5.0) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_without_redis_running_requests_go_on_and_new_ones_wait(
    cluster: ControlledCluster, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(10, 150)
    cluster.redis.kill()  # between two requests: the controller notices within a renewal of its lock
    cluster.redis.start()
    answers = run_all(cluster.grpc_address, load(10, 150), after=(100, cluster.redis.kill))
    assert tokens(answers) == expected
    cluster.until(lambda: ready(cluster)[0] == 503, "the controller is not ready")
    assert "Redis does not answer" in ready(cluster)[1]
    (refused,) = run_all(cluster.grpc_address, load(1, prefix="refused"))
    assert refused.error is not None
    assert refused.error.code() is grpc.StatusCode.UNAVAILABLE
    assert "Redis" in str(refused.error.details())
    time.sleep(3.0)  # longer than the leader's lock and half a worker's lease
    shutil.rmtree(cluster.folder / "redis" / "appendonlydir")  # and it comes back without its data
    cluster.redis.start()
    cluster.until(lambda: ready(cluster)[0] == 200, "the controller is ready again")
    cluster.until(
        lambda: len(cluster.admin.ListSloClasses(admin_pb2.ListSloClassesRequest(), timeout=5.0).classes) >= 5,
        "the shipped classes are there again",
    )
    assert tokens(run_all(cluster.grpc_address, load(10, 150, "after"))) == expected
    cluster.settled()


def test_a_controller_that_starts_without_redis_says_so_and_serves_once_it_is_there(
    cluster: ControlledCluster, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(5)
    cluster.end("controller")
    cluster.redis.kill()
    cluster.start_controller()
    cluster.until(lambda: "does not answer" in ready(cluster)[1], "the controller says that Redis is away")
    assert ready(cluster)[0] == 503
    (refused,) = run_all(cluster.grpc_address, load(1, prefix="early"))
    assert refused.error is not None
    assert refused.error.code() is grpc.StatusCode.UNAVAILABLE
    assert "Redis at redis://" in str(refused.error.details())
    assert "start it or correct the Redis URL" in cluster.log("controller")
    cluster.redis.start()
    cluster.wait_for_replicas(2)
    assert tokens(run_all(cluster.grpc_address, load(5, prefix="late"))) == expected
    cluster.settled()


def test_a_killed_controller_leaves_nothing_running_on_workers(
    cluster: ControlledCluster, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(5)
    answers = run_all(cluster.grpc_address, load(10, 1000), after=(100, lambda: cluster.kill("controller")))
    assert all(answer.error is not None for answer in answers)
    cluster.start_controller(wait_for=2)
    cluster.settled()
    cluster.until(
        lambda: all(replica.kv_used_tokens == 0 for replica in cluster.replicas().values()),
        "the workers have dropped what nobody reads",
    )
    info = cluster.admin.GetRequest(admin_pb2.GetRequestRequest(request_id="q-3"), timeout=5.0)
    assert info.phase == "finished"
    assert "send the request again" in info.error
    # Under the same ids, as the error says.
    assert tokens(run_all(cluster.grpc_address, load(5))) == expected


def test_a_standby_waits_and_takes_over(cluster: ControlledCluster) -> None:
    cluster.start_controller(name="standby")
    cluster.until(lambda: "standby" in ready(cluster)[1], "the second controller stands by")
    assert ready(cluster)[0] == 503
    (refused,) = run_all(cluster.grpc_address, load(1))
    assert refused.error is not None
    assert "standby" in str(refused.error.details())
    cluster.kill("controller")
    cluster.until(lambda: ready(cluster)[0] == 200, "the standby leads")
    cluster.wait_for_replicas(2)
    assert {answer.finish for answer in run_all(cluster.grpc_address, load(5))} == {"length"}
    cluster.settled()
    cluster.end("standby")


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(cluster: ControlledCluster) -> None:
    status: list[int] = []
    late: list[Answer] = []

    def stop_and_ask() -> None:
        stopping = threading.Thread(target=lambda: status.append(cluster.stop("controller")))
        stopping.start()
        time.sleep(0.3)
        late.extend(run_all(cluster.grpc_address, load(2, prefix="late")))
        stopping.join()

    finished = run_all(cluster.grpc_address, load(6, 100), after=(30, stop_and_ask))
    assert {answer.finish for answer in finished} == {"length"}
    assert all(answer.error is not None and "shutting down" in str(answer.error.details()) for answer in late)
    assert status == [0]


def test_a_leader_that_slept_finds_itself_replaced_and_says_so(cluster: ControlledCluster) -> None:
    sleeper = cluster.process("controller")
    old_address = cluster.grpc_address
    cluster.start_controller(name="standby")
    cluster.until(lambda: "standby" in ready(cluster)[1], "the second controller stands by")

    def sleep() -> None:
        sleeper.send_signal(signal.SIGSTOP)
        try:
            cluster.until(lambda: ready(cluster)[0] == 200, "the standby leads")
        finally:
            sleeper.send_signal(signal.SIGCONT)

    answers = run_all(old_address, load(4, 1000), after=(20, sleep))
    assert {answer.finish for answer in answers} == {"error"}
    assert all(answer.last is not None and "another controller" in answer.last.error for answer in answers)
    cluster.wait_for_replicas(2)
    assert {answer.finish for answer in run_all(cluster.grpc_address, load(4))} == {"length"}
    cluster.settled()
    cluster.use("controller")
    cluster.until(lambda: "standby" in ready(cluster)[1], "the first controller stands by now")
    cluster.end("controller")
    cluster.end("standby")
