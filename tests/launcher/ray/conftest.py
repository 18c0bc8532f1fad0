"""One server of each kind for all tests, each started when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.launcher.ray import servers
from tests.launcher.ray.servers import Served
from tests.network.own_network import is_own_network

SERVERS = ("served", "clustered")


@pytest.fixture(scope="session")
def _own_network() -> None:
    if not is_own_network():
        pytest.fail("Ray listens on every interface: run this with make test-cluster, or python -m "
                    "tests.network.own_network pytest …")  # fmt: skip


@pytest.fixture(scope="session")
def served(_own_network: None) -> Iterator[Served]:
    """`krea2 serve`."""
    with servers.serve() as served:
        yield served


@pytest.fixture(scope="session")
def clustered(_own_network: None) -> Iterator[Served]:
    """`krea2 cluster run` with two replicas, which leaves nothing when it ends."""
    with servers.cluster() as clustered:
        yield clustered


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Served:
    """Either of the two."""
    found: Served = request.getfixturevalue(request.param)
    return found
