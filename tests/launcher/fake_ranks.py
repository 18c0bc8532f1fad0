"""Ranks that compute nothing, in the test's own event loop, and a front-end that takes them for real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from engine.config import EngineConfig
from engine.step import Job, Step, StepTimes
from launcher.async_client import AsyncClient
from launcher.frontend import serve
from launcher.internal import (
    Decoded,
    Execute,
    FrontendConfig,
    Hello,
    Load,
    RankFailed,
    Ready,
    Report,
    StepDone,
    decode_command,
    ranks_address,
    route,
)
from launcher.limits import Limits
from launcher.protocol import encode

DEADLINE_S = 20.0


class FakeRank:
    """Answers every step at once, or, while `hold` is set, when `release` says so."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        run_folder: Path,
        rank: int,
        answer: bool = True,
        memory: dict[str, int] | None = None,
    ) -> None:
        self.rank = rank
        self._memory = memory or {"weights": 1}
        self.steps: list[Step] = []
        self.hold = False
        self.decodes = True
        self._jobs: dict[int, Job] = {}
        self._answered = 0
        self._arrived = asyncio.Condition()
        self._socket = context.socket(zmq.DEALER)
        self._socket.routing_id = route(rank)
        self._socket.connect(ranks_address(str(run_folder)))
        self._task = asyncio.create_task(self._run())
        if answer:
            self.send(Hello(rank=rank))

    def send(self, message: Report, *frames: bytes) -> None:
        self._socket.send_multipart([encode(message), *frames])

    def fail(self, code: str, message: str) -> None:
        self.send(RankFailed(rank=self.rank, code=code, message=message, parameter=None))

    async def has_steps(self, count: int) -> list[Step]:
        """Wait for that many steps to have arrived since the beginning."""
        async with asyncio.timeout(DEADLINE_S), self._arrived:
            await self._arrived.wait_for(lambda: len(self.steps) >= count)
        return self.steps

    def release(self, count: int = 1) -> None:
        """Answer the next steps that have not been answered."""
        for step in self.steps[self._answered : self._answered + count]:
            self._answer(step)

    async def _run(self) -> None:
        while True:
            command = decode_command(await self._socket.recv())
            if isinstance(command, Load):
                self.send(Ready(rank=self.rank, device="fake", memory=self._memory))
            elif isinstance(command, Execute):
                async with self._arrived:
                    self.steps.append(command.step)
                    self._arrived.notify_all()
                if not self.hold:
                    self._answer(command.step)

    def _answer(self, step: Step) -> None:
        self._answered += 1
        self._jobs |= {job.job_id: job for job in step.start}
        times = StepTimes(encode_s=0.5 if step.start else 0.0, denoise_s=0.25)
        self.send(StepDone(rank=self.rank, number=step.number, times=times))
        if self.rank == 0 and self.decodes:
            for job_id in step.decode:
                job = self._jobs[job_id]
                pixel = bytes([job.seed % 256, job_id % 256, 7])
                header = Decoded(rank=0, job_id=job_id, width=job.width, height=job.height, decode_s=0.125)
                self.send(header, pixel * (job.width * job.height))


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine, in bounded time."""

    async def bounded() -> None:
        async with asyncio.timeout(3 * DEADLINE_S):
            await test

    asyncio.run(bounded())


class Fakes:
    """A front-end, its fake ranks and clients, in one event loop."""

    def __init__(self, context: zmq.asyncio.Context, address: str, ranks: list[FakeRank], served: asyncio.Task[None]):
        self.context, self.address, self.ranks, self.served = context, address, ranks, served
        self.stop = asyncio.Event()

    async def client(self) -> AsyncClient:
        client = AsyncClient(self.address)
        await client.connect()
        return client

    def raw(self) -> zmq.asyncio.Socket:
        socket = self.context.socket(zmq.DEALER)
        socket.connect(self.address)
        return socket


@asynccontextmanager
async def fake_engine(
    run_folder: Path,
    *,
    tp: int = 1,
    limits: Limits | None = None,
    make_rank: Callable[[zmq.asyncio.Context, Path, int], FakeRank] = FakeRank,
    **config: float,
) -> AsyncIterator[Fakes]:
    """A front-end for the demo checkpoint with `tp` fake ranks. Leaving it stops what still runs."""
    settings = FrontendConfig(
        engine=EngineConfig(tp=tp),
        run_folder=str(run_folder),
        limits=limits or Limits(),
        external_ranks=True,
        **config,  # type: ignore[arg-type]
    )
    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    served = asyncio.create_task(serve(settings, [], on_started=started.set_result, stop=stop))
    context = zmq.asyncio.Context()
    ranks = [make_rank(context, run_folder, rank) for rank in range(tp)]
    try:
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait((served, started), return_when=asyncio.FIRST_COMPLETED)
        if served.done():
            await served
        fakes = Fakes(context, started.result(), ranks, served)
        fakes.stop = stop
        yield fakes
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait((served,))
        for rank in ranks:
            rank._task.cancel()
        context.destroy(linger=0)
