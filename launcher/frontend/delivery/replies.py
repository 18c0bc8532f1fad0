"""Tells the clients of a front-end what becomes of their requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import msgspec

from engine.errors import CancelledError, Krea2Error, RequestTimeoutError
from engine.scheduling.outlook import Estimate
from engine.step import Job
from launcher.frontend.admission.followers import Follower
from launcher.frontend.delivery.clients import Clients, failure
from launcher.frontend.delivery.metrics import Metrics
from launcher.frontend.delivery.tracked_requests import TrackedRequest
from launcher.logs import log_event
from launcher.messages.api_keys import ANONYMOUS
from launcher.messages.client_messages import Accepted, Failed, Image, Message, Preview, Progress
from launcher.messages.message_parts import Computed, MadeFor
from launcher.messages.rank_messages import Previewed


class Replies:
    """Sends clients what becomes of their requests, counts it and logs it.

    `num_done` and `num_failed`: requests that have ended.
    """

    def __init__(self, clients: Clients, metrics: Metrics) -> None:
        self._clients, self._metrics = clients, metrics
        self.num_done = self.num_failed = 0

    def accepted(self, request: TrackedRequest, estimate: Estimate | None, to: Follower | None = None) -> None:
        """Tell all who follow a request, or one of them, where it stands, in the queue and in time."""
        request.position = estimate.position if estimate is not None else 0
        accepted = Accepted(
            request_id="",
            position=request.position,
            estimated_s=None if estimate is None else estimate.seconds,
            attempt=request.attempt,
            warnings=request.plan.warnings,
        )
        self._send(request.followers if to is None else [to], "accepted", accepted)

    def progress(self, request: TrackedRequest, estimate: Estimate | None) -> None:
        """Tell how many denoise steps of all its images are done, if they have any."""
        if not request.checked.steps:
            return
        progress = Progress(
            request_id="",
            step=request.steps_done,
            steps=request.checked.steps * request.checked.num_images,
            estimated_s=None if estimate is None else estimate.seconds,
            attempt=request.attempt,
        )
        self._send(request.followers, "progress", progress)

    def preview(self, request: TrackedRequest, job: Job, previewed: Previewed, file: bytes) -> None:
        """Send a JPEG file of an image as it was after a step."""
        index = request.plan.jobs.index(job)
        preview = Preview(request_id="", index=index, step=previewed.step, steps=job.steps, attempt=request.attempt)
        self._metrics.previews.inc()
        self._send(request.followers, "preview", preview, file, index=index)

    def held_preview(self, reason: str) -> None:
        """Count a preview that is not sent. reason: filters `blocked` it, were `unavailable`, or `busy` with another
        one of its image, or it is `unaudited`: its line could not be written."""
        self._metrics.held_previews.labels(reason).inc()

    def image(
        self,
        request: TrackedRequest,
        job: Job,
        file: bytes,
        warnings: tuple[str, ...] = (),
        computed: Computed | None = None,
    ) -> bool:
        """Send an image's file. warnings: of this image, beside those of its request. Returns whether it was the last
        one, which ends the request."""
        is_last = len(request.outcome) + 1 == request.checked.num_images
        image = Image(
            request_id="",
            index=request.plan.jobs.index(job),
            num_images=request.checked.num_images,
            seed=job.seed,
            width=request.checked.answer_size[0],
            height=request.checked.answer_size[1],
            output_format=request.checked.output_format,
            warnings=(*request.plan.warnings, *warnings),
            timings=dict(request.timings.seconds),
            attempt=request.attempt,
            explanation=request.life.explain() if is_last and request.life is not None else None,
            text_tokens=request.plan.text_tokens,
            image_tokens=request.plan.image_tokens,
            computed=computed,
            made_for=None if request.checked.of_loras is None else MadeFor(**asdict(request.checked.of_loras)),
        )
        self._keep(request, image, file)
        self._metrics.images.inc()
        if is_last:
            request.ended = True
            self.num_done += 1
            self._metrics.count_outcome("done", request.caller)
            self._metrics.count_stages(request.timings.seconds)
            self._log("request done", request, images=len(request.outcome), timings=request.timings.seconds)
        return request.ended

    def failed(self, request: TrackedRequest, error: Krea2Error) -> None:
        """End a request with an error."""
        request.ended = True
        self.num_failed += 1
        self._metrics.count_outcome(error.code, request.caller)
        self._log("request failed", request, level=_level(error), code=error.code, message=error.message)
        request.outcome = []
        self._keep(request, failure("", error))

    def left(self, follower: Follower, error: Krea2Error) -> None:
        """Tell somebody that it follows a request no more."""
        self._send([follower], "reply", failure("", error))

    def repeated(self, follower: Follower, repeats: str, *, ended: bool) -> None:
        """Count and log a request that is not made again, but follows the one that it repeats."""
        self._metrics.repeated.inc()
        log_event("request repeated", request_id=follower.request_id, repeats=repeats, ended=ended)

    def refused(self, follower: Follower, caller: str, error: Krea2Error) -> None:
        """Refuse a request that was never accepted."""
        client, request_id = follower
        self._metrics.count_outcome(error.code, caller)
        log_event(
            "request refused",
            level=_level(error),
            request_id=request_id,
            code=error.code,
            message=error.message,
            key=_shown(caller),
        )
        self._clients.send_failure(client, request_id, error)

    def again(self, request: TrackedRequest, follower: Follower) -> None:
        """Send a follower the images that are there or the failure: it has asked again, or has joined."""
        for index, (message, frames) in enumerate(request.outcome):
            self._send([follower], "reply", message, *frames, index=index)

    def forget(self, follower: Follower) -> None:
        """Send nothing more to a follower that has acknowledged the end."""
        self._clients.forget(*follower)

    def _keep(self, request: TrackedRequest, message: Image | Failed, *frames: bytes) -> None:
        self._send(request.followers, "reply", message, *frames, index=len(request.outcome))
        request.outcome.append((message, frames))

    def _send(self, followers: Iterable[Follower], kind: str, message: Message, *frames: bytes, index: int = 0) -> None:
        """Send a message to each follower, by its own name for the request.

        What it cannot take yet is replaced by a later message of this kind and index.
        """
        for client, request_id in followers:
            named = msgspec.structs.replace(message, request_id=request_id)
            self._clients.send(client, named, *frames, key=(kind, request_id, index))

    def _log(self, event: str, request: TrackedRequest, *, level: str = "info", **details: object) -> None:
        log_event(
            event,
            level=level,
            request_id=request.request_id,
            attempt=request.attempt,
            key=_shown(request.caller),
            **details,
        )


def _level(error: Krea2Error) -> str:
    return "info" if isinstance(error, (CancelledError, RequestTimeoutError)) else "warning"


def _shown(caller: str) -> str | None:
    return None if caller == ANONYMOUS else caller
