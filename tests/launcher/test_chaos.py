"""Two real ranks that are killed, stopped, or brought down by a request, while eight requests are in flight, four of
them with pictures."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL  # what nobody reads must not fill a pipe
from typing import NamedTuple

import numpy as np
import psutil
import pytest

from engine.errors import RequestKilledRanksError
from launcher.client.async_client import AsyncClient
from launcher.client.results import Result
from launcher.messages.client_messages import Progress
from tests.launcher.processes import (
    HOLLOW_RANKS,
    PATIENCE_S,
    Marked,
    connect_async,
    is_stopped,
    new_marked,
    temporary_folder,
    wait_until,
)

POISON = 666
STEP_TIMEOUT_S = 120.0  # the first step after a restart takes long where other processes want the cores too
# After which a stopped rank is noticed. A step takes a fiftieth of a second on an idle machine, the first longer;
# a hollow one a tenth, with nothing to compute.
STOPPED_STEP_TIMEOUT_S = {"tp": 40.0, "sp": 40.0, "cfg": 40.0, "hollow": 15.0}
ROUNDS = 10
REQUESTS = [
    {"prompt": f"a {colour} circle on a white background", "seed": seed, "steps": steps, "width": side, "height": side}
    for seed, (colour, steps, side) in enumerate(
        [
            ("red", 12, 64), ("blue", 20, 96), ("green", 8, 128), ("yellow", 16, 64),
            ("purple", 10, 96), ("orange", 24, 64), ("black", 6, 128), ("red", 30, 64),
        ]
    )
]  # fmt: skip


def picture(side: int) -> np.ndarray:
    return np.linspace(0, 255, side * side * 3).reshape(side, side, 3).astype(np.uint8)


def upper_half(side: int) -> np.ndarray:
    return np.repeat([255, 0], side // 2)[:, None].repeat(side, 1).astype(np.uint8)


# What some of them begin from, by seed: an image alone, one of which only a part is repainted, and one that is only
# encoded and decoded.
for seed, begin_from in {
    1: {"image": picture(96), "strength": 0.6, "num_images": 2},
    3: {"image": picture(64), "mask": upper_half(64)},
    5: {"image": picture(64), "mask": upper_half(64), "strength": 0.5},
    6: {"image": picture(128), "strength": 0.0},
}.items():
    REQUESTS[seed] |= begin_from

# A rank that raises whenever a job with the poisonous seed starts.
POISONED_RANK = f"""
import sys
if "_rank" in sys.orig_argv:
    import launcher.ranks.worker as worker
    load = worker._load
    def load_poisoned(config, wire):
        rank = load(config, wire)
        execute = rank.execute
        def poisoned(step, pixels):
            if any(job.seed == {POISON} for job in step.start):
                raise RuntimeError("this request is poison")
            return execute(step, pixels)
        rank.execute = poisoned
        return rank
    worker._load = load_poisoned
"""


class Target(NamedTuple):
    """A server's processes, found before there are requests, which may be over before all processes were looked at."""

    marked: Marked
    ranks: list[psutil.Process]
    http: psutil.Process

    @classmethod
    def of(cls, marked: Marked) -> Target:
        (http,) = marked.wait_for("_http", 1)
        return cls(marked, [marked.rank(0), marked.rank(1)], http)


Disturbance = Callable[[Target, AsyncClient], Awaitable[None]]


async def kill_rank_0(target: Target, _: AsyncClient) -> None:
    target.ranks[0].kill()


async def kill_rank_1(target: Target, _: AsyncClient) -> None:
    target.ranks[1].kill()


async def stop_a_rank(target: Target, _: AsyncClient) -> None:
    target.ranks[1].send_signal(signal.SIGSTOP)


async def send_poison(_: Target, client: AsyncClient) -> None:
    with pytest.raises(RequestKilledRanksError, match="this request is poison"):
        await client.generate("poison", seed=POISON, steps=2)


async def kill_http(target: Target, _: AsyncClient) -> None:
    target.http.kill()
    async with asyncio.timeout(PATIENCE_S):
        while [process.pid for process in target.marked.alive("_http")] in ([], [target.http.pid]):
            await asyncio.sleep(0.05)


DISTURBANCES: dict[str, Disturbance] = {
    disturbance.__name__: disturbance for disturbance in (kill_rank_0, kill_rank_1, stop_a_rank, send_poison, kill_http)
}


# Of two ranks. Hollow ones need no torch, and no three restarts of it, to be brought down.
MODES = {"hollow": ("--tp", "2"), "tp": ("--tp", "2"), "sp": ("--sp", "2"), "cfg": ("--cfg-parallel",)}
FAST = [
    ("kill_rank_0", "tp"),
    ("kill_rank_1", "tp"),
    ("kill_http", "tp"),
    ("send_poison", "hollow"),
    ("stop_a_rank", "hollow"),
]


class Chaos(NamedTuple):
    """A server to be disturbed, and what it made of all requests before."""

    marked: Marked
    address: str
    calm: list[Result]


Start = Callable[..., Chaos]


def start_server(marked: Marked, mode: str = "tp", step_timeout_s: float = STEP_TIMEOUT_S) -> str:
    """`krea2 serve` on two ranks that can be poisoned. Returns the address for clients."""
    marked.run_first(HOLLOW_RANKS + POISONED_RANK if mode == "hollow" else POISONED_RANK)
    arguments = ("--port", "0", *MODES[mode], "--device", "cpu", "--step-timeout", str(step_timeout_s))
    process = marked.start_krea2("serve", *arguments, stderr=DEVNULL)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("rpc: "):
            return line.removeprefix("rpc: ").strip()
    raise AssertionError(process.wait(PATIENCE_S))


@pytest.fixture(scope="module")
def chaos() -> Iterator[Start]:
    """`chaos(mode)`: a server in this mode, the same for all disturbances, each of which it must outlive.

    `chaos(mode, step_timeout_s)`: one with another step timeout, for ranks that are stopped.
    """
    servers: dict[tuple[str, float], Chaos] = {}
    with temporary_folder() as folder:

        def get(mode: str, step_timeout_s: float = STEP_TIMEOUT_S) -> Chaos:
            if (mode, step_timeout_s) not in servers:
                own = Path(folder) / f"{mode}-{step_timeout_s:g}"
                own.mkdir()
                marked = new_marked(own)
                started.append(marked)
                address = start_server(marked, mode, step_timeout_s)
                servers[mode, step_timeout_s] = Chaos(marked, address, asyncio.run(make_calmly(address)))
            return servers[mode, step_timeout_s]

        started: list[Marked] = []
        try:
            yield get
        finally:
            for marked in started:
                marked.kill()


async def make_all(client: AsyncClient, under_way: asyncio.Event) -> list[Result]:
    """All requests at once; `under_way` is set when the first step is done."""

    async def follow(request: dict[str, object]) -> Result:
        async for event in client.stream(**request):  # type: ignore[arg-type]
            if isinstance(event, Progress):
                under_way.set()
            elif isinstance(event, Result):
                return event
        raise AssertionError

    return list(await asyncio.gather(*(follow(request) for request in REQUESTS)))


async def make_calmly(address: str) -> list[Result]:
    async with connect_async(address) as client:
        calm = await make_all(client, asyncio.Event())
    assert {result.attempt for result in calm} == {1}
    return calm


async def disturb(chaos: Chaos, disturbance: Disturbance) -> None:
    """Every image must come, and equal the one of an undisturbed run."""
    async with connect_async(chaos.address) as client, asyncio.timeout(PATIENCE_S):
        under_way = asyncio.Event()
        restarts = (await client.status()).restarts
        target = Target.of(chaos.marked)
        made = asyncio.create_task(make_all(client, under_way))
        await under_way.wait()
        await disturbance(target, client)
        results = await made
        if disturbance is not kill_http:
            assert (await client.status()).restarts > restarts
            assert max(result.attempt for result in results) > 1
    for result, undisturbed in zip(results, chaos.calm, strict=True):
        for image, other in zip(result.images, undisturbed.images, strict=True):
            assert np.abs(np.asarray(image, int) - np.asarray(other, int)).max() <= 1


# In other modes: what the front-end does when ranks are lost is the same, and so are the ranks' ends. Poison of real
# ranks: they end by the same error of the same worker, and what real ranks make after their end the killed ones show.
# Real ranks that are stopped: the front-end hears of them what it hears of hollow ones, nothing, and kills either;
# what the ranks that replace them make is what those make that replace the killed ones.
@pytest.mark.parametrize(
    ("disturbance", "mode"),
    [
        *FAST,
        *(
            pytest.param(disturbance, mode, marks=pytest.mark.slow)
            for mode in ("tp", "sp", "cfg")
            for disturbance in DISTURBANCES
            if (disturbance, mode) not in FAST
        ),
    ],
)
def test_all_other_images_come_and_are_the_same(chaos: Start, disturbance: str, mode: str) -> None:
    step_timeout_s = STOPPED_STEP_TIMEOUT_S[mode] if disturbance == "stop_a_rank" else STEP_TIMEOUT_S
    asyncio.run(disturb(chaos(mode, step_timeout_s), DISTURBANCES[disturbance]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_rounds_of_every_disturbance(chaos: Start) -> None:
    rounds = [disturbance for disturbance in DISTURBANCES.values() for _ in range(ROUNDS)]
    random.Random(0).shuffle(rounds)
    for disturbance in rounds:
        asyncio.run(disturb(chaos("tp", STOPPED_STEP_TIMEOUT_S["tp"]), disturbance))


# With no rank stopped: rank 0 of the other case is one that runs, and must go too.
@pytest.mark.parametrize("stopped", [pytest.param(False, marks=pytest.mark.slow), True])
def test_when_the_front_end_is_killed_every_child_goes(marked: Marked, stopped: bool) -> None:
    start_server(marked)
    if stopped:
        rank = marked.rank(1)
        rank.send_signal(signal.SIGSTOP)
        # until it has stopped, which takes some time, it can still see the front-end's end and go
        wait_until(lambda: is_stopped(rank), "the stop of every thread")
    marked.started[0].kill()
    if stopped:
        wait_until(lambda: [process.pid for process in marked.alive()] == [rank.pid], "the end of all but the stopped")
        rank.send_signal(signal.SIGCONT)
    marked.expect_nothing_left()
