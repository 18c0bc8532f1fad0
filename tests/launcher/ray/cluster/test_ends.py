"""The end of the command, in whatever way, is that of all that it has started. Ctrl-C: see the fixture `clustered`."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.launcher.processes import PATIENCE_S, read_log, wait_until
from tests.launcher.ray.servers import Served, cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]  # each starts a cluster of its own


def test_nothing_outlives_a_command_that_is_killed() -> None:
    with cluster(replicas=1) as server:
        assert server.processes("gcs_server")
        assert server.processes("launcher", "_rank")
        server.process.kill()
        server.process.wait(PATIENCE_S)  # and what it leaves is looked at when this ends


@pytest.mark.parametrize(("drain_s", "times"), [(1.0, 1), (600.0, 2)])
def test_what_runs_too_long_when_the_command_is_stopped_is_answered_with_an_error_and_counted(
    drain_s: float, times: int
) -> None:
    body = {"prompt": "a red circle", "size": "64x64", "steps": 2}
    with cluster("--drain-s", str(drain_s), replicas=1) as server, ThreadPoolExecutor(2) as pool:
        for rank in server.processes("launcher", "_rank"):
            rank.suspend()
        bodies = (body, body | {"stream": True})
        whole, stream = (pool.submit(server.post, "/v1/images/generations", each) for each in bodies)
        wait_until(lambda: sum(server.load()) == 2, "the arrival of both")
        for _ in range(times):
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "draining" in events(server), "what is said of it")
        answer = whole.result(PATIENCE_S)
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "the server was stopped"
        assert "the server was stopped" in stream.result(PATIENCE_S).text
        assert server.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        (said,) = (entry for entry in read_log(server.log) if entry["event"] == "requests cut off")
        assert (said["level"], said["requests"]) == ("warning", 2)
        assert said.get("drain_s") == (None if times > 1 else drain_s)


def events(server: Served) -> list[str]:
    return [entry["event"] for entry in read_log(server.log)]
