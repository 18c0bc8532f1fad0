"""Two real ranks that are killed, stopped, or brought down by a request, while eight requests are in flight."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from subprocess import DEVNULL  # what nobody reads must not fill a pipe

import numpy as np
import psutil
import pytest

from engine.errors import RequestKilledRanksError
from launcher.async_client import AsyncClient
from launcher.protocol import Progress
from launcher.results import Result
from tests.launcher.processes import PATIENCE_S, Marked, wait_until

POISON = 666
STEP_TIMEOUT_S = 6.0
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

# A rank that raises whenever a job with the poisonous seed starts.
POISONED_RANK = f"""
import sys
if "_rank" in sys.orig_argv:
    import launcher.worker as worker
    load = worker._load
    def load_poisoned(config, wire):
        rank = load(config, wire)
        execute = rank.execute
        def poisoned(step):
            if any(job.seed == {POISON} for job in step.start):
                raise RuntimeError("this request is poison")
            return execute(step)
        rank.execute = poisoned
        return rank
    worker._load = load_poisoned
"""

Disturbance = Callable[[Marked, AsyncClient], Awaitable[None]]


async def kill_rank_0(marked: Marked, _: AsyncClient) -> None:
    marked.rank(0).kill()


async def kill_rank_1(marked: Marked, _: AsyncClient) -> None:
    marked.rank(1).kill()


async def stop_a_rank(marked: Marked, _: AsyncClient) -> None:
    marked.rank(1).send_signal(signal.SIGSTOP)


async def send_poison(_: Marked, client: AsyncClient) -> None:
    with pytest.raises(RequestKilledRanksError, match="this request is poison"):
        await client.generate("poison", seed=POISON, steps=2)


async def kill_http(marked: Marked, _: AsyncClient) -> None:
    (http,) = marked.alive("_http")
    http.kill()
    async with asyncio.timeout(PATIENCE_S):
        while [process.pid for process in marked.alive("_http")] in ([], [http.pid]):
            await asyncio.sleep(0.05)


DISTURBANCES: dict[str, Disturbance] = {
    disturbance.__name__: disturbance for disturbance in (kill_rank_0, kill_rank_1, stop_a_rank, send_poison, kill_http)
}


MODES = {"tp": ("--tp", "2"), "sp": ("--sp", "2"), "cfg": ("--cfg-parallel",)}  # of two ranks


def start_server(marked: Marked, mode: str = "tp") -> str:
    """`krea2 serve` on two ranks that can be poisoned. Returns the address for clients."""
    folder = marked.folder / "hook"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(POISONED_RANK)
    marked.environment["PYTHONPATH"] = str(folder)
    arguments = ("--port", "0", *MODES[mode], "--device", "cpu", "--step-timeout", str(STEP_TIMEOUT_S))
    process = marked.start_krea2("serve", *arguments, stderr=DEVNULL)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("rpc: "):
            return line.removeprefix("rpc: ").strip()
    raise AssertionError(process.wait(PATIENCE_S))


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


async def disturb(marked: Marked, client: AsyncClient, disturbance: Disturbance, calm: list[Result]) -> None:
    """Every image must come, and equal the one of an undisturbed run."""
    under_way = asyncio.Event()
    restarts = (await client.status()).restarts
    async with asyncio.timeout(2 * PATIENCE_S):
        made = asyncio.create_task(make_all(client, under_way))
        await under_way.wait()
        await disturbance(marked, client)
        results = await made
    if disturbance is not kill_http:
        assert (await client.status()).restarts > restarts
        assert max(result.attempt for result in results) > 1
    for result, undisturbed in zip(results, calm, strict=True):
        difference = np.asarray(result.images[0], int) - np.asarray(undisturbed.images[0], int)
        assert np.abs(difference).max() <= 1


def run_rounds(marked: Marked, mode: str, disturbances: list[Disturbance]) -> None:
    async def test() -> None:
        async with AsyncClient(start_server(marked, mode)) as client:
            calm = await make_all(client, asyncio.Event())
            assert {result.attempt for result in calm} == {1}
            for disturbance in disturbances:
                await disturb(marked, client, disturbance, calm)

    asyncio.run(test())


@pytest.mark.parametrize("mode", ["tp", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("sp", "cfg"))])
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_all_other_images_come_and_are_the_same(marked: Marked, disturbance: str, mode: str) -> None:
    run_rounds(marked, mode, [DISTURBANCES[disturbance]])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_rounds_of_every_disturbance(marked: Marked) -> None:
    rounds = [disturbance for disturbance in DISTURBANCES.values() for _ in range(ROUNDS)]
    random.Random(0).shuffle(rounds)
    run_rounds(marked, "tp", rounds)


def _is_stopped(thread: int) -> bool:
    return psutil.Process(thread).status() == psutil.STATUS_STOPPED


@pytest.mark.parametrize("stopped", [False, True])
def test_when_the_front_end_is_killed_every_child_is_gone_within_2_s(marked: Marked, stopped: bool) -> None:
    start_server(marked)
    if stopped:
        rank = marked.rank(1)
        rank.send_signal(signal.SIGSTOP)
        # until it has stopped, which takes a moment, it can still see the front-end's end and go
        wait_until(lambda: all(_is_stopped(thread.id) for thread in rank.threads()), "the stop of every thread")
    marked.started[0].kill()
    killed = time.monotonic()
    marked.wait_for("_rank", int(stopped))  # a stopped process cannot even end
    assert time.monotonic() - killed < 2.0
    if stopped:
        marked.alive("_rank")[0].send_signal(signal.SIGCONT)
        marked.expect_nothing_left(timeout_s=2.0)
