"""The loop of a rank's process over its real socket: what it does while no order comes, and that it sleeps else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq

from engine.step import BuiltPlan, Step, StepTimes
from launcher.client.async_client import AsyncClient
from launcher.messages.configs import RankConfig
from launcher.messages.encoding import encode
from launcher.messages.rank_messages import Execute, PlanBuilt, ranks_address, route
from launcher.ranks import worker
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.processes import PATIENCE_S

Send = Callable[[int], None]


class _Ended(Exception):
    pass


class _Rank:
    """Has `builds` plans to build, each of which `on_build` is called for; ends its loop with step `last`."""

    def __init__(self, builds: int, last: int, on_build: Callable[[int], None] = lambda number: None) -> None:
        self._builds, self._last, self._on_build = builds, last, on_build
        self.did: list[str] = []
        self.looked = threading.Semaphore(0)

    def idle_wait_s(self) -> float | None:
        self.looked.release()
        return 0.01 if self._builds else None

    def use_idle_time(self) -> BuiltPlan:
        self.did.append("build")
        self._builds -= 1
        self._on_build(self.did.count("build"))
        return BuiltPlan(4160, 0.4, None, self.did.count("build"), 1 << 20, 0, 7)

    def execute(self, step: Step, pixels: object) -> SimpleNamespace:
        self.did.append(f"step {step.number}")
        if step.number == self._last:
            raise _Ended
        return SimpleNamespace(wait=StepTimes, previews=())


@pytest.fixture
def front_end(run_folder: Path) -> Iterator[tuple[RankConfig, Send]]:
    config = RankConfig(rank=0, local_rank=0, local_ranks=1, run_folder=str(run_folder), store_file=None)
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.bind(ranks_address(str(run_folder), 0))

    def send(number: int) -> None:
        socket.send_multipart([route(0), encode(Execute(step=Step(number)))])

    yield config, send
    socket.close(0)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the loop sends besides answers to steps."""
    messages: list[object] = []
    monkeypatch.setattr(worker._Wire, "send", lambda wire, message, *frames: messages.append(message))
    return messages


def _connected(config: RankConfig, send: Send, first: int) -> worker._Wire:
    """A wire by which the first order has come, so that the others find it."""
    wire = worker._Wire(config)
    for _ in range(int(PATIENCE_S / 0.01)):
        try:
            send(first)
            break
        except zmq.ZMQError:  # it is not connected yet
            threading.Event().wait(0.01)
    assert wire.has_command(PATIENCE_S)
    return wire


def test_an_order_goes_before_plans_and_one_plan_is_built_at_a_time(
    front_end: tuple[RankConfig, Send], sent: list[object]
) -> None:
    config, send = front_end
    wire = _connected(config, send, 0)

    def on_build(number: int) -> None:
        if number == 2:
            send(1)
            assert wire.has_command(PATIENCE_S)

    rank = _Rank(builds=3, last=1, on_build=on_build)
    with pytest.raises(_Ended):
        worker._work(rank, config, wire)  # type: ignore[arg-type]
    assert rank.did == ["step 0", "build", "build", "step 1"]
    assert [message.plan.plans for message in sent if isinstance(message, PlanBuilt)] == [1, 2]


def test_where_nothing_is_to_be_built_it_waits_for_orders_alone(front_end: tuple[RankConfig, Send]) -> None:
    config, send = front_end
    wire = _connected(config, send, 0)
    rank = _Rank(builds=1, last=1)
    sent = threading.Thread(target=lambda: [rank.looked.acquire(timeout=PATIENCE_S) for _ in range(3)] and send(1))
    sent.start()
    with pytest.raises(_Ended):
        worker._work(rank, config, wire)  # type: ignore[arg-type]
    sent.join()
    assert rank.did == ["step 0", "build", "step 1"]
    assert not rank.looked.acquire(blocking=False), "it looked before each order and after the build, and not again"


def test_what_a_rank_sends_of_a_plan_is_in_the_log(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "krea2")
    built = BuiltPlan(tokens=4160, seconds=0.4, error=None, plans=1, bytes=1 << 20, waited=0, images=7)
    failed = replace(built, error="out of memory", plans=1)

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            for each in (built, failed):
                fakes.ranks[0].send(PlanBuilt(rank=0, plan=each))
            assert (await client.generate("a red circle", steps=1)).seed is not None

    run(test())
    first, second = (record for record in caplog.records if record.getMessage() == "attention plan")
    assert (first.levelname, second.levelname) == ("INFO", "WARNING")
    fields = {"rank": 0, **asdict(built)}
    del fields["error"]
    assert vars(first)["fields"] == fields
    assert vars(second)["fields"]["error"] == "out of memory"
