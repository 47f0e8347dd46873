"""What `slosctl up --topology` starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli.cluster.plan import Options, make_plan, roles_of
from cli.errors import CliError


@pytest.mark.parametrize(
    ("given", "roles"),
    [
        (("colocated", None, None, None), ("both",)),
        (("colocated", 3, None, None), ("both",) * 3),
        (("disaggregated", None, None, None), ("prefill", "decode")),
        (("disaggregated", None, 2, 1), ("prefill", "prefill", "decode")),
        (("disaggregated", 1, None, 2), ("prefill", "decode", "decode", "both")),
    ],
)
def test_roles(given: tuple[str, int | None, int | None, int | None], roles: tuple[str, ...]) -> None:
    assert roles_of(*given) == roles


def test_options_that_do_not_agree_are_refused() -> None:
    with pytest.raises(CliError, match="need --topology disaggregated"):
        roles_of("colocated", None, 1, None)
    with pytest.raises(CliError, match="at least one worker"):
        roles_of("colocated", 0, None, None)


def test_controller_and_redis_stay_off_the_engines_cores(tmp_path: Path) -> None:
    usable = set(os.sched_getaffinity(0))

    def free(engine: str, replicas: int) -> set[int]:
        options = Options(engine, ("both",) * replicas, "slos", "127.0.0.1", 0, 0, "", tmp_path)
        made = make_plan(options)
        assert made.redis is not None
        assert made.redis.cores == made.controller.cores == made.free_cores
        for worker in made.workers:
            assert not worker.cores, "an engine binds itself"
            assert ("--other-cores" in worker.argv) == (set(made.free_cores) != usable)
        return set(made.free_cores)

    assert free("emulated", 1) == usable
    assert free("vllm", len(usable)) == usable
    if len(usable) > 1:
        assert free("vllm", 1) == {min(usable)}


def test_every_worker_of_a_disaggregated_cluster_can_exchange_kv(tmp_path: Path) -> None:
    def commands(roles: tuple[str, ...]) -> list[list[str]]:
        options = Options("emulated", roles, "slos", "127.0.0.1", 0, 0, "redis://127.0.0.1:1/0", tmp_path)
        return [list(worker.argv) for worker in make_plan(options).workers]

    apart = commands(("prefill", "decode", "both"))
    assert all("--kv-exchange" in command for command in apart)
    assert ["services.prefill_worker" in command for command in apart] == [True, False, False]
    assert "--kv-exchange" not in commands(("both",))[0]
