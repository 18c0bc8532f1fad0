"""Keeps what a front-end knows of a request, and tells its client."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from engine.errors import CancelledError, Krea2Error, RequestTimeoutError
from engine.scheduling.scheduler import Estimate
from engine.step import Job
from launcher.awake import RealTimer
from launcher.frontend.clients import Clients
from launcher.frontend.metrics import STAGES, Metrics
from launcher.logs import log_event
from launcher.messages.client_messages import Accepted, Image, Preview, Progress
from launcher.requests.check import CheckedRequest
from launcher.requests.plan import Plan


@dataclass(eq=False)
class TrackedRequest:
    """A request from its arrival until its client has acknowledged the end.

    A flat record of what was asked, how far it is, and what was sent, which is why it has more attributes than others.
    """

    number: int
    client: bytes
    request_id: str
    checked: CheckedRequest
    plan: Plan
    arrived: float
    started: bool = False
    ended: bool = False
    deaths: int = 0  # of ranks that had it in flight
    steps_done: int = 0
    decoded: set[int] = field(default_factory=set)  # jobs whose image is there
    position: int | None = None  # as the client knows it
    timings: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*STAGES, "total"), 0.0))
    timer: RealTimer | None = None
    frames: list[list[bytes]] = field(default_factory=list)  # images or failure, kept until they are acknowledged

    def start_over(self) -> None:
        """Forget what ranks that died had made of it, but for images that are there."""
        self.deaths += 1
        self.started = False
        self.timings = dict.fromkeys(self.timings, 0.0)
        self.steps_done = self.checked.steps * len(self.decoded)

    @property
    def attempt(self) -> int:
        """Which attempt to make its images this is, from 1."""
        return self.deaths + 1

    @property
    def size(self) -> int:
        """Bytes that are kept until they are acknowledged."""
        return sum(len(frame) for frames in self.frames for frame in frames)


class Replies:
    """Sends clients what becomes of their requests, counts it and logs it.

    `num_done` and `num_failed`: requests that have ended.
    """

    def __init__(self, clients: Clients, metrics: Metrics) -> None:
        self._clients, self._metrics = clients, metrics
        self.num_done = self.num_failed = 0

    def accepted(self, request: TrackedRequest, estimate: Estimate | None) -> None:
        """Tell a client where its request stands, in the queue and in time."""
        request.position = estimate.position if estimate is not None else 0
        accepted = Accepted(
            request_id=request.request_id,
            position=request.position,
            estimated_s=None if estimate is None else estimate.seconds,
            attempt=request.attempt,
        )
        self._clients.send(request.client, accepted, key=("accepted", request.number))

    def progress(self, request: TrackedRequest, estimate: Estimate | None) -> None:
        """Tell how many denoise steps of all its images are done."""
        progress = Progress(
            request_id=request.request_id,
            step=request.steps_done,
            steps=request.checked.steps * request.checked.num_images,
            estimated_s=None if estimate is None else estimate.seconds,
            attempt=request.attempt,
        )
        self._clients.send(request.client, progress, key=("progress", request.number))

    def preview(self, request: TrackedRequest, job: Job, step: int, file: bytes) -> None:
        """Send a JPEG file of an image as it was after a step."""
        index = request.plan.jobs.index(job)
        preview = Preview(
            request_id=request.request_id, index=index, step=step, steps=job.steps, attempt=request.attempt
        )
        self._metrics.previews.inc()
        self._clients.send(request.client, preview, file, key=("preview", request.number, index))

    def image(self, request: TrackedRequest, job: Job, file: bytes) -> bool:
        """Send an image's file. Returns whether it was the last one, which ends the request."""
        request.timings["total"] = time.monotonic() - request.arrived
        image = Image(
            request_id=request.request_id,
            index=request.plan.jobs.index(job),
            num_images=request.checked.num_images,
            seed=job.seed,
            width=job.width,
            height=job.height,
            output_format=request.checked.output_format,
            warnings=request.plan.warnings,
            timings=request.timings,
            attempt=request.attempt,
        )
        key = ("reply", request.number, len(request.frames))
        request.frames.append(self._clients.send(request.client, image, file, key=key))
        self._metrics.images.inc()
        if len(request.frames) == request.checked.num_images:
            request.ended = True
            self.num_done += 1
            self._metrics.count_done(request.timings)
            self._log("request done", request, images=len(request.frames), timings=request.timings)
        return request.ended

    def failed(self, request: TrackedRequest, error: Krea2Error) -> None:
        """End a request with an error."""
        request.ended = True
        self.num_failed += 1
        self._metrics.requests.labels(error.code).inc()
        level = "info" if isinstance(error, (CancelledError, RequestTimeoutError)) else "warning"
        self._log("request failed", request, level=level, code=error.code, message=error.message)
        key = ("reply", request.number, 0)
        request.frames = [self._clients.send_failure(request.client, request.request_id, error, key=key)]

    def refused(self, client: bytes, request_id: str, error: Krea2Error) -> None:
        """Refuse a request that was never accepted."""
        self._metrics.requests.labels(error.code).inc()
        log_event("request refused", level="warning", request_id=request_id, code=error.code, message=error.message)
        self._clients.send_failure(client, request_id, error)

    def again(self, request: TrackedRequest) -> None:
        """Send the images or the failure again, for a client that has asked."""
        for index, frames in enumerate(request.frames):
            self._clients.send_again(request.client, frames, key=("reply", request.number, index))

    def forget(self, request: TrackedRequest) -> None:
        """Send nothing more of a request whose end was acknowledged."""
        self._clients.forget(request.client, request.number)

    def _log(self, event: str, request: TrackedRequest, *, level: str = "info", **details: object) -> None:
        log_event(event, level=level, request_id=request.request_id, attempt=request.attempt, **details)
