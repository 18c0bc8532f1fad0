"""Makes files of the pixels that ranks send, and sends them to clients: the one place through which pictures leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from engine.errors import Krea2Error
from engine.step import Job
from launcher.disclosure.disclosure import Disclosure
from launcher.frontend.admission.uploads import Spawn
from launcher.frontend.delivery.replies import Replies
from launcher.frontend.delivery.tracked_requests import TrackedRequest
from launcher.logs import log_exception
from launcher.messages.encoding import describe
from launcher.messages.rank_messages import Decoded, Previewed
from launcher.requests.image_files import encode_image, encode_preview, in_thread


class Finishing:
    """Writes images and previews as files, in threads, and hands them to `replies`.

    made_with: what files say beside their request, by its number; disclosure: what they say in any case. fail: ends a
    request with an error. on_done: hears of a request whose last image has been sent.
    """

    def __init__(
        self,
        replies: Replies,
        spawn: Spawn,
        disclosure: Disclosure,
        *,
        made_with: Callable[[int], Mapping[str, Any]],
        fail: Callable[[TrackedRequest, Krea2Error], None],
        on_done: Callable[[TrackedRequest], None],
    ) -> None:
        self._replies, self._spawn, self._made_with = replies, spawn, made_with
        self._disclosure, self._fail, self._on_done = disclosure, fail, on_done

    def image(self, request: TrackedRequest, job: Job, decoded: Decoded, rgb: bytes) -> None:
        """Send an image that has come, when its file is written, or end the request if it cannot be."""
        came = time.monotonic()
        request.image_came(decoded, came)
        self._spawn(self._send_image(request, job, rgb, came))

    def preview(self, request: TrackedRequest, job: Job, previewed: Previewed, rgb: bytes) -> None:
        """Send a preview that has come, when its file is written, unless a later one has gone by then."""
        self._spawn(self._send_preview(request, job, previewed, rgb))

    async def _send_image(self, request: TrackedRequest, job: Job, rgb: bytes, came: float) -> None:
        try:
            checked, said = request.checked, self._made_with(request.number)
            write = partial(encode_image, seed=job.seed, made_with=said, disclosure=self._disclosure)
            file = await in_thread(checked.pixels, write, rgb, checked)
        except Exception as error:
            log_exception(error)
            self._fail(request, Krea2Error(f"the image could not be written as a file: {describe(error)}"))
            return
        await request.written(job.job_id, came, time.monotonic())
        if request.ended:  # cancelled, or failed, meanwhile
            return
        if self._replies.image(request, job, file):
            self._on_done(request)

    async def _send_preview(self, request: TrackedRequest, job: Job, previewed: Previewed, rgb: bytes) -> None:
        attempt, picture = request.attempt, request.checked.picture
        write = partial(encode_preview, picture=picture, disclosure=self._disclosure)
        file = await in_thread(len(rgb) // 3, write, rgb, previewed.width, previewed.height)
        if not request.ended and request.is_newest(job, attempt, previewed.step):
            self._replies.preview(request, job, previewed, file)
