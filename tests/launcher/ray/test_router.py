"""The router in Ray Serve's own base class, over replicas that are none. No Ray is started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from launcher.ray.fleet import FLEET
from launcher.ray.wire import Hints, encode_hints
from tests.launcher.processes import PATIENCE_S

pytestmark = pytest.mark.cluster
MOST = 4  # requests that a replica takes


class FakeReplica:
    """What the router asks of a replica."""

    def __init__(self, name: str, backlog_s: float = 0.0, requests: int = 0) -> None:
        from ray.serve._private.common import DeploymentID, ReplicaID

        self.replica_id = ReplicaID(name, DeploymentID("engine", "app"))
        self.routing_stats = {"backlog_s": backlog_s, "waiting": 0, "running": 1}
        self.max_ongoing_requests, self.requests, self.asked = MOST, requests, 0
        self.node_id, self.availability_zone, self.multiplexed_model_ids = "node", None, set[str]()

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.asked += 1
        return self.requests


class Routed:
    """The router over some replicas."""

    def __init__(self, *replicas: FakeReplica) -> None:
        from ray.serve._private.common import DeploymentHandleSource, DeploymentID

        from launcher.ray.router_class import Router

        self.router = Router(
            deployment_id=DeploymentID("engine", "app"),
            handle_source=DeploymentHandleSource.REPLICA,
            use_replica_queue_len_cache=True,
        )
        self.replicas = {replica.replica_id.unique_id: replica for replica in replicas}
        self.router.update_replicas(list(replicas))

    async def settle(self) -> None:
        """Until the router has asked new replicas how many requests they have, as Serve's does once."""
        known = self.router.replica_queue_len_cache
        async with asyncio.timeout(PATIENCE_S):
            while any(known.get(replica.replica_id) is None for replica in self.replicas.values()):
                await asyncio.sleep(0.01)

    def pending(self, ticket: str, **hints: Any) -> Any:
        from ray.serve._private.common import RequestMetadata
        from ray.serve.request_router import PendingRequest

        told = encode_hints(Hints(ticket=ticket, work=1.0, **hints))
        metadata = RequestMetadata(request_id=ticket, internal_request_id=ticket)
        return PendingRequest(args=[b"header", [], False, told], kwargs={}, metadata=metadata)

    async def route(self, ticket: str, **hints: Any) -> str:
        """Where a request goes."""
        async with asyncio.timeout(PATIENCE_S):
            chosen = await self.router._choose_replica_for_request(self.pending(ticket, **hints))
        self.router.on_send_request(chosen.replica_id)
        name: str = chosen.replica_id.unique_id
        return name

    @property
    def asked(self) -> int:
        return sum(replica.asked for replica in self.replicas.values())


@pytest.fixture(autouse=True)
def _an_empty_fleet() -> Iterator[None]:
    FLEET.replicas_are(())
    yield
    FLEET.replicas_are(())


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_a_request_goes_where_the_least_work_is_and_nobody_is_asked() -> None:
    async def test() -> None:
        routed = Routed(FakeReplica("a", 50.0), FakeReplica("b", 10.0), FakeReplica("c", 90.0))
        await routed.settle()
        asked = routed.asked
        assert await routed.route("one") == "b"
        assert FLEET.where("one") == "b"
        assert routed.asked == asked

    run(test)


def test_requests_at_once_are_counted_as_they_are_chosen() -> None:
    async def test() -> None:
        routed = Routed(*map(FakeReplica, "abcd"))
        await routed.settle()
        went = await asyncio.gather(*(routed.route(f"ticket {number}") for number in range(8)))
        assert sorted(went) == sorted("abcd" * 2)

    run(test)


def test_a_full_replica_is_not_waited_for_while_another_is_free() -> None:
    async def test() -> None:
        routed = Routed(FakeReplica("a", 1.0, requests=MOST), FakeReplica("b", 50.0))
        await routed.settle()
        asked = routed.replicas["a"].asked
        assert await routed.route("one") == "b"
        assert routed.replicas["a"].asked == asked

    run(test)


def test_when_all_are_full_they_are_asked_until_one_is_not() -> None:
    async def test() -> None:
        routed = Routed(FakeReplica("a", 1.0, requests=MOST), FakeReplica("b", 50.0, requests=MOST))
        await routed.settle()
        asked = asyncio.create_task(routed.route("one"))
        before = routed.asked
        async with asyncio.timeout(PATIENCE_S):
            while routed.asked < before + 2:
                await asyncio.sleep(0.01)
        assert not asked.done()
        routed.replicas["b"].requests = 1
        assert await asked == "b"

    run(test)


def test_a_replica_that_died_leaves_the_fleet_and_one_out_of_reach_is_tried_last() -> None:
    async def test() -> None:
        replicas = {name: FakeReplica(name, seconds) for name, seconds in (("a", 1.0), ("b", 20.0), ("c", 50.0))}
        routed = Routed(*replicas.values())
        await routed.settle()
        left: list[str] = []
        stop = FLEET.on_leaving(left.extend)
        routed.router.on_replica_actor_died(replicas["a"].replica_id)
        assert left == ["a"]
        assert await routed.route("one") == "b"
        routed.router.on_replica_actor_unavailable(replicas["b"].replica_id)
        assert await routed.route("two") == "c"
        stop()

    run(test)


def test_statistics_are_heard_when_they_change_and_replicas_that_go_are_forgotten() -> None:
    async def test() -> None:
        a, b = FakeReplica("a", 30.0), FakeReplica("b", 60.0)
        routed = Routed(a, b)
        await routed.settle()
        b.routing_stats = {"backlog_s": 2.0, "waiting": 0, "running": 1}
        routed.router.update_replicas([a, b])
        assert await routed.route("one") == "b"
        b.routing_stats = {"of another release": 1}
        routed.router.update_replicas([a, b])
        routed.router.update_replicas([a])
        assert (FLEET.takes("a"), FLEET.takes("b")) == (True, False)

    run(test)


def test_replicas_to_avoid_come_last_and_a_call_without_hints_is_routed_too() -> None:
    async def test() -> None:
        from ray.serve._private.common import RequestMetadata
        from ray.serve.request_router import PendingRequest

        routed = Routed(FakeReplica("a", 1.0), FakeReplica("b", 50.0))
        await routed.settle()
        assert await routed.route("one", avoid=("a",)) == "b"
        metadata = RequestMetadata(request_id="question", internal_request_id="question")
        for arguments in ([b"question"], [b"header", [], False, b"no hints"]):
            pending = PendingRequest(args=arguments, kwargs={}, metadata=metadata)
            ranks = await routed.router.choose_replicas(list(routed.replicas.values()), pending)
            assert [replica.replica_id.unique_id for rank in ranks for replica in rank] == ["a", "b"]

    run(test)
