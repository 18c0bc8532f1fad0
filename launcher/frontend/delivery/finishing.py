"""Makes files of the pixels that ranks send, has filters look at them before, and sends them to clients: the one place
through which pictures leave."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from engine.errors import FilterUnavailableError, Krea2Error, ModerationBlockedError
from engine.step import Job
from launcher.disclosure.disclosure import Disclosure
from launcher.filters.checks import Checks, Judged
from launcher.filters.protocol import Picture
from launcher.filters.verdicts import BLOCK, BLUR, blocked_error
from launcher.frontend.admission.arrivals import Spawn
from launcher.frontend.delivery.replies import Replies
from launcher.frontend.delivery.tracked_requests import TrackedRequest
from launcher.logs import log_exception
from launcher.messages.encoding import describe
from launcher.messages.rank_messages import Decoded, Previewed
from launcher.requests.image_files import encode_image, encode_preview, finish_image, finish_preview, in_thread


class Finishing:
    """Writes images and previews as files, in threads, and hands them to `replies`.

    gate: the filters that judge pixels as they would leave, before they are a file; None where there are none.
    made_with: what files say beside their request, by its number; disclosure: what they say in any case. fail: ends a
    request with an error. on_done: hears of a request whose last image has been sent.
    """

    def __init__(
        self,
        replies: Replies,
        spawn: Spawn,
        gate: Checks | None,
        disclosure: Disclosure,
        *,
        made_with: Callable[[int], Mapping[str, Any]],
        fail: Callable[[TrackedRequest, Krea2Error], None],
        on_done: Callable[[TrackedRequest], None],
    ) -> None:
        self._replies, self._spawn, self._gate, self._made_with = replies, spawn, gate, made_with
        self._disclosure, self._fail, self._on_done = disclosure, fail, on_done
        self._tasks: defaultdict[TrackedRequest, set[asyncio.Task[Any]]] = defaultdict(set)  # that filters may hold up
        self._previewing: set[int] = set()  # jobs of which filters have a preview

    def image(self, request: TrackedRequest, job: Job, decoded: Decoded, rgb: bytes) -> None:
        """Send an image that has come, when filters let it pass and its file is written, or end the request."""
        came = time.monotonic()
        request.image_came(decoded, came)
        self._begin(request, self._send_image(request, job, rgb, came))

    def preview(self, request: TrackedRequest, job: Job, previewed: Previewed, rgb: bytes) -> None:
        """Send a preview that has come, when filters let it pass and its file is written, unless a later one has gone
        by then. One that comes while filters have another of its image is left out."""
        if self._gate is None or not self._gate.checks_images:
            self._begin(request, self._send_preview(request, job, previewed, rgb))
        elif job.job_id in self._previewing:
            self._replies.held_preview("busy")
        else:
            self._previewing.add(job.job_id)
            self._begin(request, self._send_checked_preview(self._gate, request, job, previewed, rgb))

    def forget(self, request: TrackedRequest) -> None:
        """Ask filters no more about the pictures of a request that has ended."""
        for task in self._tasks.pop(request, ()):
            if task is not asyncio.current_task():
                task.cancel()

    def _begin(self, request: TrackedRequest, work: Coroutine[Any, Any, None]) -> None:
        task = self._spawn(work)
        if self._gate is not None:
            self._tasks[request].add(task)
            task.add_done_callback(self._tasks[request].discard)

    # ---- images

    async def _send_image(self, request: TrackedRequest, job: Job, rgb: bytes, came: float) -> None:
        began, judged = came, None
        try:
            checked, said = request.checked, self._made_with(request.number)
            if self._gate is not None and self._gate.checks_images:
                rgb, judged = await self._judge_image(self._gate, request, rgb)
                began = time.monotonic()
                request.filtered(job.job_id, came, began)
            finished = judged is not None
            write = partial(encode_image, seed=job.seed, made_with=said, disclosure=self._disclosure, finished=finished)
            file = await in_thread(checked.pixels, write, rgb, checked)
        except (ModerationBlockedError, FilterUnavailableError) as error:
            self._fail(request, error)
            return
        except Exception as error:
            log_exception(error)
            self._fail(request, Krea2Error(f"the image could not be written as a file: {describe(error)}"))
            return
        await request.written(job.job_id, began, time.monotonic())
        if request.ended:  # cancelled, or failed, meanwhile
            return
        if self._replies.image(request, job, file, () if judged is None else judged.warnings):
            self._on_done(request)

    async def _judge_image(self, gate: Checks, request: TrackedRequest, rgb: bytes) -> tuple[bytes, Judged]:
        """Have filters judge an image as it would leave. Returns the pixels that may. Raises what filters do, and
        `ModerationBlockedError`."""
        checked = request.checked
        if checked.picture is not None:
            join = partial(finish_image, width=checked.width, height=checked.height, picture=checked.picture)
            rgb = await in_thread(checked.pixels, join, rgb)
        picture = Picture(*checked.answer_size, rgb, "image", checked.prompt)
        judged = await gate.check_image(picture, moderation=checked.moderation)
        if judged.action == BLOCK:
            raise blocked_error(judged.findings)
        if judged.action == BLUR:
            found = next(finding for finding in judged.findings if finding.action == BLUR)
            told = f"the image was blurred by this server's content filter {found.filter} ({found.category})"
            judged = replace(judged, warnings=(*judged.warnings, told))
        return (rgb if judged.rgb is None else judged.rgb), judged

    # ---- previews

    async def _send_preview(self, request: TrackedRequest, job: Job, previewed: Previewed, rgb: bytes) -> None:
        attempt, picture = request.attempt, request.checked.picture
        write = partial(encode_preview, picture=picture, disclosure=self._disclosure)
        file = await in_thread(len(rgb) // 3, write, rgb, previewed.width, previewed.height)
        if not request.ended and request.is_newest(job, attempt, previewed.step):
            self._replies.preview(request, job, previewed, file)

    async def _send_checked_preview(
        self, gate: Checks, request: TrackedRequest, job: Job, previewed: Previewed, rgb: bytes
    ) -> None:
        """Send a preview if filters let it pass. If they block it, or do not answer, it is held back: the image
        decides."""
        attempt, checked, width, height = request.attempt, request.checked, previewed.width, previewed.height
        try:
            if checked.picture is not None:
                rgb, width, height = await in_thread(len(rgb) // 3, finish_preview, rgb, width, height, checked.picture)
            judged = await gate.check_image(
                Picture(width, height, rgb, "preview", checked.prompt), moderation=checked.moderation
            )
        except FilterUnavailableError:
            self._replies.held_preview("unavailable")
            return
        except Exception as error:
            log_exception(error)
            return
        finally:
            self._previewing.discard(job.job_id)
        if judged.action == BLOCK:
            self._replies.held_preview("blocked")
            return
        write = partial(encode_preview, picture=checked.picture, disclosure=self._disclosure, finished=True)
        file = await in_thread(width * height, write, rgb if judged.rgb is None else judged.rgb, width, height)
        if not request.ended and request.is_newest(job, attempt, previewed.step):
            self._replies.preview(request, job, previewed, file)
