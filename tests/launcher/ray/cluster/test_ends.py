"""The end of the command, in whatever way, is that of all that it has started. Ctrl-C: see the fixture `clustered`."""

from __future__ import annotations

import pytest

from tests.launcher.processes import PATIENCE_S
from tests.launcher.ray.servers import cluster

pytestmark = pytest.mark.cluster


def test_nothing_outlives_a_command_that_is_killed() -> None:
    with cluster(replicas=1) as server:
        assert server.processes("gcs_server")
        assert server.processes("launcher", "_rank")
        server.process.kill()
        server.process.wait(PATIENCE_S)  # and what it leaves is looked at when this ends
