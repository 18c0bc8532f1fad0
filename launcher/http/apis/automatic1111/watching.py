"""What each client has drawn, by whichever HTTP process: its progress, the newest preview, and ending it early.

A1111 has one user. Here a client sees and ends its own requests alone: those with the same API key or, where the server
has none, from the same address.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request

from engine.errors import error_from_code
from launcher.client.results import Event, ImageFile, PreviewFile, Result
from launcher.http.answers.drawing import Drawing
from launcher.http.apis.automatic1111.neighbours import Neighbours, Question, Seen
from launcher.messages.client_messages import Accepted, Progress

PREVIEWS = 3  # of each image at most
_PATIENCE = 20  # requests in a row that their caller never asked about, after which its next ones have no previews
_MOST_CALLERS = 1000  # that are remembered for that
_LEAST, _MOST = 0.01, 0.99  # of the progress of a request: clients take 0 for none, and 1 for its end


@dataclass
class Job:
    """A request on its way. interrupted: by its own client, over another connection."""

    num_images: int
    name: str = "txt2img"
    began: float = field(default_factory=time.time)
    drawing: Drawing | None = None
    position: int = 0  # of images in the queue before it
    step: int = 0
    steps: int = 0  # of all images; 0 until the first is done
    ends: float | None = None  # by the monotonic clock, once that is known
    preview: bytes | None = None
    images: list[ImageFile] = field(default_factory=list)
    task: asyncio.Task[Result] | None = None
    interrupted: bool = False

    def seen(self, *, with_image: bool) -> Seen:
        """Say how far it is."""
        return Seen(
            name=self.name, num_images=self.num_images, began=self.began, position=self.position, step=self.step,
            steps=self.steps, ends=self.ends, images_done=len(self.images), interrupted=self.interrupted,
            preview=self.preview if with_image else None,
        )  # fmt: skip

    def interrupt(self) -> None:
        """End it."""
        self.interrupted = True
        if self.task is not None:
            self.task.cancel()

    def hear(self, event: Event) -> None:
        """Remember what an event says."""
        match event:
            case Accepted(position=position):
                self.position, self.step = position, 0
            case Progress(step=step, steps=steps):
                self.position, self.step, self.steps = 0, step, steps
            case PreviewFile(file=file):
                self.preview = file
            case ImageFile():
                self.images.append(event)
        if isinstance(event, Accepted | Progress):
            self.ends = None if event.estimated_s is None else time.monotonic() + event.estimated_s

    def result_so_far(self) -> Result:
        """Make a result of the images that were done when it was interrupted. Raises `Krea2Error` if there is none."""
        if not self.images:
            raise error_from_code("cancelled", "interrupted by /sdapi/v1/interrupt before an image was done")
        done = sorted(self.images, key=lambda image: image.index)
        first = done[0]
        told = f"interrupted by /sdapi/v1/interrupt after {len(done)} of {self.num_images} images"
        return Result(
            request_id=first.request_id, attempt=first.attempt, files=[image.file for image in done],
            seeds=[image.seed for image in done], width=first.width, height=first.height, format=first.format,
            timings={}, warnings=(told,), prompt=first.prompt, computed=[image.computed for image in done],
            made_for=first.made_for,
        )  # fmt: skip


class Watching:
    """The requests of this process' clients, and by `neighbours` of the other processes'."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self._jobs: dict[str, list[Job]] = {}
        # Requests in a row whose caller never asked how far they were: previews take time, if little.
        self._unwatched: OrderedDict[str, int] = OrderedDict()

    def previews_for(self, caller: str) -> int | None:
        """Say how many previews each image of the caller's next request is to have."""
        return PREVIEWS if self._unwatched.get(caller, 0) < _PATIENCE else None

    async def draw(self, caller: str, job: Job, start: Callable[[], Coroutine[Any, Any, Drawing]]) -> Result:
        """Have images drawn by `start`, in sight of the caller. Being cancelled cancels the request.

        Raises `Krea2Error`, also if the caller interrupts it before an image is done.
        """
        self._jobs.setdefault(caller, []).append(job)
        try:
            async with self._neighbours.asking(caller, partial(self._tell, caller, job)):
                job.task = asyncio.create_task(_follow(job, start))
                if job.interrupted:
                    job.task.cancel()
                return await job.task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if not job.interrupted or (current is not None and current.cancelling()):
                raise
            return job.result_so_far()
        finally:
            self._forget(caller, job)

    async def interrupt(self, caller: str) -> int:
        """End all requests of the caller. Returns how many there were."""
        seen = await self._ask(caller, Question(interrupt=True))
        return sum(not each.interrupted for each in seen)

    async def progress(self, caller: str, *, with_image: bool) -> dict[str, Any]:
        """Describe how far the caller's requests are, as A1111 does: 0 where there are none."""
        if with_image:
            self._note_watched(caller)
        jobs = await self._ask(caller, Question(with_image=with_image))
        count = sum(job.num_images for job in jobs)
        done = sum(job.fraction * job.num_images for job in jobs)
        number = min(int(done), max(0, count - 1))
        steps = jobs[0].steps // jobs[0].num_images if jobs else 0
        now = time.monotonic()
        previews = [job.preview for job in jobs if job.preview is not None]
        return {
            "progress": min(_MOST, max(_LEAST, done / count)) if jobs else 0.0,
            "eta_relative": max(
                (job.ends - now for job in jobs if job.ends is not None and job.ends > now), default=0.0
            ),
            "state": {
                "skipped": False,
                "interrupted": any(job.interrupted for job in jobs),
                "stopping_generation": False,
                "job": jobs[0].name if jobs else "",
                "job_count": count,
                "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(jobs[0].began)) if jobs else "0",
                "job_no": number,
                "sampling_step": round((done - number) * steps),
                "sampling_steps": steps,
            },
            "current_image": previews[0] if previews else None,
            "textinfo": _describe(jobs),
        }

    async def _ask(self, caller: str, question: Question) -> list[Seen]:
        """Ask all requests of the caller, the oldest first."""
        here = [self._tell(caller, job, question) for job in self._jobs.get(caller, ())]
        return sorted((*here, *await self._neighbours.ask(caller, question)), key=lambda seen: seen.began)

    def _tell(self, caller: str, job: Job, question: Question) -> Seen:
        """Answer a question about one request, whichever process asks."""
        seen = job.seen(with_image=question.with_image)
        if question.with_image:
            self._note_watched(caller)
        if question.interrupt and not job.interrupted:
            job.interrupt()
        return seen

    def _note_watched(self, caller: str) -> None:
        if caller in self._jobs or caller in self._unwatched:  # or else anybody who asks would stay remembered
            self._unwatched[caller] = -len(self._jobs.get(caller, ()))  # which will have been watched when they end

    def _forget(self, caller: str, job: Job) -> None:
        jobs = self._jobs[caller]
        jobs.remove(job)
        if not jobs:
            del self._jobs[caller]
        self._unwatched[caller] = self._unwatched.get(caller, 0) + 1
        self._unwatched.move_to_end(caller)
        if len(self._unwatched) > _MOST_CALLERS:
            self._unwatched.popitem(last=False)


def _describe(jobs: list[Seen]) -> str | None:
    if not jobs:
        return None
    oldest = jobs[0]
    state = f"queued behind {oldest.position} images" if oldest.position else "being drawn"
    if oldest.images_done:
        state = f"being drawn, {oldest.images_done} of {oldest.num_images} images done"
    return state if len(jobs) == 1 else f"{len(jobs)} requests, the oldest of which is {state}"


def caller_of(request: Request) -> str:
    """Tell clients apart: by their key's name or, where there are no keys, by their address."""
    key: str | None = request.state.key_name
    if key is not None:
        return f"key {key}"
    return f"address {request.client.host}" if request.client is not None else "somebody"


async def _follow(job: Job, start: Callable[[], Coroutine[Any, Any, Drawing]]) -> Result:
    job.drawing = await start()
    events: AsyncGenerator[Event, None] = job.drawing.events()
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Result):
                return event
            job.hear(event)
    raise AssertionError("a request's last event is its result")
