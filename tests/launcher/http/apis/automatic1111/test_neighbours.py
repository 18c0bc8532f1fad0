"""Requests of a client whose HTTP process is not the one that is asked about them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from engine.errors import Krea2Error
from launcher.http.answers.drawing import Drawing
from launcher.http.apis.automatic1111.neighbours import Neighbours
from launcher.http.apis.automatic1111.watching import Job, Watching
from launcher.messages.client_messages import Progress
from tests.launcher.fake_ranks import DEADLINE_S, run
from tests.launcher.processes import temporary_folder


@pytest.fixture(autouse=True)
def _nobody_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Because of a machine on which an answer takes a second."""
    monkeypatch.setattr("launcher.http.apis.automatic1111.neighbours._ANSWER_S", DEADLINE_S)


async def never() -> Drawing:
    await asyncio.Event().wait()
    raise AssertionError


async def until_images(watching: Watching, count: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while (await watching.progress("somebody", with_image=False))["state"]["job_count"] != count:
            await asyncio.sleep(0.01)


def test_any_process_tells_of_and_ends_what_another_draws() -> None:
    async def test(folder: Path) -> None:
        first, second = (Watching(Neighbours(str(folder), worker)) for worker in range(2))
        job = Job(2)
        drawing = asyncio.create_task(first.draw("somebody", job, never))
        await until_images(second, 2)
        job.preview = b"preview"
        job.hear(Progress(request_id="r", attempt=1, step=3, steps=16, estimated_s=None))
        told = await second.progress("somebody", with_image=True)
        assert told == await first.progress("somebody", with_image=True)
        assert (told["current_image"], told["progress"], told["textinfo"]) == (b"preview", 3 / 16, "being drawn")
        assert (await second.progress("another", with_image=True))["state"]["job_count"] == 0
        assert await second.interrupt("another") == 0

        here = asyncio.create_task(second.draw("somebody", Job(1), never))
        await until_images(first, 3)
        assert await second.interrupt("somebody") == 2
        for task in (drawing, here):
            with pytest.raises(Krea2Error, match="interrupted by /sdapi/v1/interrupt before an image was done"):
                await task
        assert await second.interrupt("somebody") == 0
        assert list(folder.iterdir()) == []

    with temporary_folder() as folder:
        run(test(Path(folder)))


def test_a_process_that_has_died_is_passed_over() -> None:
    async def test(folder: Path) -> None:
        dead, living = (Watching(Neighbours(str(folder), worker)) for worker in range(2))
        drawing = asyncio.create_task(dead.draw("somebody", Job(1), never))
        await until_images(living, 1)
        (path,) = folder.iterdir()
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        assert (await living.progress("somebody", with_image=True))["progress"] == 0
        assert list(folder.iterdir()) == []

    with temporary_folder() as folder:
        run(test(Path(folder)))
