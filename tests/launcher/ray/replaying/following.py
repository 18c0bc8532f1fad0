"""A request that is followed beside a test, and what an ingress has counted meanwhile."""

from __future__ import annotations

import asyncio

from launcher.messages.client_messages import Generate, Reply
from tests.launcher.ray.replaying.fake_engines import FakeCluster

REQUEST = Generate(request_id="request", prompt="a fox", seed=7)


class Following:
    """It, and what it was told."""

    def __init__(self, cluster: FakeCluster, request: Generate = REQUEST) -> None:
        self.told: list[Reply] = []
        self._cluster, self._request = cluster, request
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for reply, _ in self._cluster.replay.replies(self._request):
            self.told.append(reply)

    async def hears(self, count: int) -> None:
        """Wait until it has been told so much."""
        while len(self.told) < count:
            await asyncio.sleep(0.01)


def metric(cluster: FakeCluster, name: str) -> float:
    """What the ingress has counted under a name with its labels."""
    lines = cluster.replay.counts.render().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name)


def moves(cluster: FakeCluster) -> float:
    return sum(metric(cluster, f'krea2_ingress_moves_total{{reason="{reason}"}}') for reason in ("stopped", "busy"))
