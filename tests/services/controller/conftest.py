from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fixtures.controller import ControlledCluster, controlled


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlledCluster]:
    """A controller with two emulated workers, shared: leave it as you found it."""
    with controlled(tmp_path_factory.mktemp("two-workers"), workers=2) as cluster:
        yield cluster


@pytest.fixture
def healthy(two_workers: ControlledCluster) -> Iterator[ControlledCluster]:
    """The shared cluster; afterwards nothing may be left behind."""
    yield two_workers
    two_workers.settled()
