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

from engine.errors import FilterUnavailableError, Krea2Error, ModerationBlockedError, ServerError
from engine.step import Job
from launcher.audit.trail import Trail
from launcher.disclosure.disclosure import Disclosure
from launcher.filters.checks import Checks, Judged
from launcher.filters.protocol import Picture
from launcher.filters.verdicts import BLOCK, BLUR, blocked_error, log_findings, strictest
from launcher.frontend.admission.arrivals import Spawn
from launcher.frontend.delivery.replies import Replies
from launcher.frontend.delivery.tracked_requests import TrackedRequest
from launcher.logs import log_exception
from launcher.messages.encoding import describe
from launcher.messages.rank_messages import Decoded, Previewed
from launcher.pictures.prepared import PreparedPicture
from launcher.requests.check import CheckedRequest
from launcher.requests.image_files import encode_image, encode_preview, finish_image, finish_preview, in_thread


class Finishing:
    """Writes images and previews as files, in threads, and hands them to `replies`.

    gate: the filters that judge pixels as they would leave, before they are a file; None where there are none. trail:
    writes down what leaves and what is held back; None where nothing does. made_with: what files say beside their
    request, by its number; disclosure: what they say in any case. fail: ends a request with an error. on_done: hears of
    a request whose last image has been sent.
    """

    def __init__(
        self,
        replies: Replies,
        spawn: Spawn,
        gate: Checks | None,
        disclosure: Disclosure,
        trail: Trail | None,
        *,
        made_with: Callable[[int], Mapping[str, Any]],
        fail: Callable[[TrackedRequest, Krea2Error], None],
        on_done: Callable[[TrackedRequest], None],
    ) -> None:
        self._replies, self._spawn, self._gate, self._made_with = replies, spawn, gate, made_with
        self._disclosure, self._trail, self._fail, self._on_done = disclosure, trail, fail, on_done
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
        if self._image_gate is not None:
            if job.job_id in self._previewing:
                self._replies.held_preview("busy")
                return
            self._previewing.add(job.job_id)
        self._begin(request, self._send_preview(request, job, previewed, rgb))

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
        began, judged, checked = came, None, request.checked
        try:
            said, computed = self._made_with(request.number), await request.computed_of(job)
            if (joined := self._joined(checked)) is not None:
                join = partial(finish_image, width=checked.width, height=checked.height, picture=joined)
                rgb = await in_thread(checked.pixels, join, rgb)
            if (gate := self._image_gate) is not None:
                judged = await self._judge_image(gate, request.request_id, checked, rgb)
                rgb = rgb if judged.rgb is None else judged.rgb
                began = time.monotonic()
                request.filtered(job.job_id, came, began)
            write = partial(
                encode_image, seed=job.seed, made_with=said, computed=computed, disclosure=self._disclosure,
                finished=joined is not None,
            )  # fmt: skip
            file = await in_thread(checked.pixels, write, rgb, checked)
            if self._trail is not None:
                await self._trail.image(
                    request.request_id, request.caller, checked, checked.answer_size, rgb, file,
                    **_found(request.judged, judged), **_which(request, job), format=checked.output_format,
                )  # fmt: skip
        except (ModerationBlockedError, FilterUnavailableError) as error:
            try:
                if self._trail is not None:
                    await self._trail.refused(
                        request.request_id, request.caller, checked, error, (checked.answer_size, rgb),
                        **_which(request, job),
                    )  # fmt: skip
            except Exception as trouble:  # the client is to be told all the same
                log_exception(trouble)
            self._fail(request, error)
            return
        except ServerError as error:  # its line cannot be written
            self._fail(request, error)
            return
        except Exception as error:
            log_exception(error)
            self._fail(request, Krea2Error(f"the image could not be written as a file: {describe(error)}"))
            return
        await request.written(job.job_id, began, time.monotonic())
        if request.ended:  # cancelled, or failed, meanwhile
            return
        if self._replies.image(request, job, file, () if judged is None else judged.warnings, computed):
            self._on_done(request)

    async def _judge_image(self, gate: Checks, request_id: str, checked: CheckedRequest, rgb: bytes) -> Judged:
        """Have filters judge an image as it would leave. Raises what filters do, and `ModerationBlockedError`."""
        picture = Picture(*checked.answer_size, rgb, "image", checked.prompt)
        judged = await gate.check_image(picture, moderation=checked.moderation)
        log_findings(request_id, judged.findings)
        if judged.action == BLOCK:
            raise blocked_error(judged.findings)
        if judged.action == BLUR:
            found = next(finding for finding in judged.findings if finding.action == BLUR)
            told = f"the image was blurred by the content filter {found.filter} ({found.category})"
            judged = replace(judged, warnings=(*judged.warnings, told))
        return judged

    @property
    def _image_gate(self) -> Checks | None:
        """The filters that look at pictures, if any do."""
        return self._gate if self._gate is not None and self._gate.checks_images else None

    def _joined(self, checked: CheckedRequest) -> PreparedPicture | None:
        """The picture into which what is drawn is put first, where filters or the audit log look at it as it leaves.
        Elsewhere that is done with the file."""
        return None if self._trail is None and self._image_gate is None else checked.picture

    # ---- previews

    async def _send_preview(self, request: TrackedRequest, job: Job, previewed: Previewed, rgb: bytes) -> None:
        """Send a preview if filters let it pass. If they block it, or do not answer, it is held back: the image
        decides."""
        attempt, checked, judged = request.attempt, request.checked, None
        width, height = previewed.width, previewed.height
        try:
            if (joined := self._joined(checked)) is not None:
                rgb, width, height = await in_thread(len(rgb) // 3, finish_preview, rgb, width, height, joined)
            if (gate := self._image_gate) is not None:
                picture = Picture(width, height, rgb, "preview", checked.prompt)
                judged = await gate.check_image(picture, moderation=checked.moderation)
        except FilterUnavailableError:
            self._replies.held_preview("unavailable")
            return
        except Exception as error:
            log_exception(error)
            return
        finally:
            self._previewing.discard(job.job_id)
        if judged is not None and judged.action == BLOCK:
            self._replies.held_preview("blocked")
            return
        if judged is not None and judged.rgb is not None:
            rgb = judged.rgb
        finished = joined is not None
        write = partial(encode_preview, picture=checked.picture, disclosure=self._disclosure, finished=finished)
        file = await in_thread(width * height, write, rgb, width, height)
        if self._trail is not None:
            try:
                await self._trail.image(
                    request.request_id, request.caller, checked, (width, height), rgb, file, event="preview",
                    step=previewed.step, **_found(judged), **_which(request, job), format="jpeg",
                )  # fmt: skip
            except ServerError:
                self._replies.held_preview("unaudited")
                return
        if not request.ended and request.is_newest(job, attempt, previewed.step):
            self._replies.preview(request, job, previewed, file)


def _which(request: TrackedRequest, job: Job) -> dict[str, Any]:
    """Say which of a request's images it is."""
    return {"index": request.plan.jobs.index(job), "seed": job.seed}


def _found(*judged: Judged | None) -> dict[str, Any]:
    """Put together what filters found, of a prompt and of an image."""
    findings = [finding for each in judged if each is not None for finding in each.findings]
    return {"findings": findings, "action": strictest(findings)}
