"""The gate that prompts and pictures pass: all filters of a server, and what they say together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from engine.errors import FilterUnavailableError, LaunchError
from launcher.filters.blur import blurred
from launcher.filters.checks import Judged
from launcher.filters.child import CheckFailedError
from launcher.filters.exchange import Method
from launcher.filters.protocol import Picture, Prompt
from launcher.filters.verdicts import ALLOW, BLOCK, BLUR, UNCHECKED, Finding, blocked_error, judge, strictest
from launcher.filters.workers import Workers
from launcher.messages.configs import FilterSpec

_KEPT = 0.8  # of an expected time, when another check has taken what it took


@dataclass(frozen=True)
class _Answer:
    """What one filter says of one thing: its findings, or how its check failed."""

    workers: Workers
    kind: str
    findings: tuple[Finding, ...] = ()
    failure: CheckFailedError | None = None


class Gate:
    """Asks all filters, each in processes of its own, which `start` starts and `close` ends.

    What is to be checked before they are up waits for them. on_seconds: called with a filter, a kind (`prompt`,
    `upload`, `preview`, `image`) and how long a check has taken, waiting included; on_verdict: with filter, kind and
    action; on_failure: with a filter and why a check has failed, in one word. image_s: how long the check of an image
    takes, by those before, 0 while unknown.
    """

    def __init__(
        self,
        specs: Sequence[FilterSpec],
        *,
        fail_open: bool,
        on_seconds: Callable[[str, str, float], None] = lambda *_: None,
        on_verdict: Callable[[str, str, str], None] = lambda *_: None,
        on_failure: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self.image_s = 0.0
        self._fail_open = fail_open
        self._on_seconds = on_seconds
        self._on_verdict = on_verdict
        self._on_failure = on_failure
        self._up = asyncio.Event()
        self._filters = [Workers(spec) for spec in specs]

    @property
    def checks_images(self) -> bool:
        """Whether there is a filter that checks or marks pictures, once it has started."""
        return any(each.methods != ("check_prompts",) for each in self._filters)

    @property
    def not_ready(self) -> str | None:
        """Why something cannot be checked now, None if everything can."""
        return next((told for each in self._filters if (told := each.not_ready) is not None), None)

    async def start(self) -> None:
        """Start all filters. Raises `LaunchError`, which names filter and reason; then none runs."""
        starts = [asyncio.create_task(self._start_one(each)) for each in self._filters]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            self.close()
            raise
        self._up.set()

    async def check_prompt(
        self, prompt: Prompt, uploads: Sequence[Picture] = (), *, moderation: str = "auto"
    ) -> Judged:
        """Check what a request asks for, and the pictures that it brings.

        Raises `ModerationBlockedError` if a filter blocks one of them, and `FilterUnavailableError` if one cannot say.
        """
        await self._up.wait()
        asked = [self._ask(each, "check_prompts", "prompt", prompt, moderation) for each in self._filters]
        asked += [
            self._ask(each, "check_images", "upload", upload, moderation)
            for upload in uploads
            for each in self._filters
        ]
        answers = [answer for answer in await asyncio.gather(*asked) if answer is not None]
        judged = self._judged(answers)
        if judged.action == BLOCK:
            blocked = next(answer for answer in answers if strictest(answer.findings) == BLOCK)
            raise blocked_error(judged.findings, await self._parameter(blocked, prompt, moderation))
        return judged

    async def check_image(self, picture: Picture, *, moderation: str = "auto") -> Judged:
        """Check a picture that is to be sent, blur it if that is the verdict, and mark it, unless it is blocked.

        Raises `FilterUnavailableError` if a filter cannot say, or cannot mark it.
        """
        await self._up.wait()
        loop = asyncio.get_running_loop()
        began = loop.time()
        asked = (self._ask(each, "check_images", picture.kind, picture, moderation) for each in self._filters)
        answers = [answer for answer in await asyncio.gather(*asked) if answer is not None]
        judged = self._judged(answers)
        if judged.action != BLOCK:
            judged = await self._changed(picture, judged)
        if picture.kind == "image":
            self.image_s = _expected(self.image_s, loop.time() - began)
        return judged

    def close(self) -> None:
        """End all processes. Whoever waits hears that nothing could be checked."""
        for each in self._filters:
            each.close()
        self._up.set()  # for those who wait for filters that will not be up

    async def _start_one(self, workers: Workers) -> None:
        try:
            await workers.start()
        except CheckFailedError as error:
            reason = str(error).removeprefix(f"filter {workers.spec.name}: ")
            raise LaunchError(f"content filter {workers.spec.label} cannot be started: {reason}") from None

    async def _ask(
        self, workers: Workers, method: Method, kind: str, item: Prompt | Picture, moderation: str
    ) -> _Answer | None:
        """Ask one filter, unless it does not do that."""
        if method not in workers.methods:
            return None
        try:
            scores = await self._timed(workers, method, kind, item)
        except CheckFailedError as error:
            return _Answer(workers, kind, failure=error)
        findings = tuple(judge(workers.spec, workers.thresholds, kind, scores, moderation))
        self._on_verdict(workers.spec.label, kind, strictest(findings))
        return _Answer(workers, kind, findings)

    async def _timed(self, workers: Workers, method: Method, kind: str, item: Prompt | Picture) -> Any:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return await workers.check(method, item)
        except CheckFailedError as error:
            self._on_failure(workers.spec.label, error.reason)
            raise
        finally:
            self._on_seconds(workers.spec.label, kind, loop.time() - began)

    def _judged(self, answers: Sequence[_Answer]) -> Judged:
        """Take together what several filters have said. Raises `FilterUnavailableError`, unless one blocks."""
        findings = tuple(finding for answer in answers for finding in answer.findings)
        action = strictest(findings)
        failed = [answer for answer in answers if answer.failure is not None]
        if failed and action != BLOCK and not self._fail_open:
            raise _unavailable(failed[0].workers)
        labels = [answer.workers.spec.label for answer in failed]
        findings += tuple(Finding(answer.workers.spec.label, answer.kind, ALLOW, UNCHECKED, 0.0) for answer in failed)
        warnings = dict.fromkeys(f"content filter {label} did not answer: this went unchecked" for label in labels)
        return Judged(findings, action, None, tuple(warnings))

    async def _changed(self, picture: Picture, judged: Judged) -> Judged:
        """Blur and mark a picture that is not blocked."""
        rgb, findings, warnings = picture.rgb, judged.findings, judged.warnings
        if judged.action == BLUR:
            rgb = await asyncio.to_thread(partial(blurred, picture))
        for each in self._filters:
            if "mark_images" not in each.methods:
                continue
            to_mark = Picture(picture.width, picture.height, rgb, picture.kind, picture.prompt)
            try:
                rgb = await self._timed(each, "mark_images", picture.kind, to_mark)
            except CheckFailedError:
                if not self._fail_open:
                    raise _unavailable(each) from None
                findings += (Finding(each.spec.label, picture.kind, ALLOW, UNCHECKED, 0.0),)
                warnings += (f"content filter {each.spec.label} did not answer: the picture is not marked",)
        return Judged(findings, judged.action, None if rgb is picture.rgb else rgb, warnings)

    async def _parameter(self, answer: _Answer, prompt: Prompt, moderation: str) -> str:
        """Say which parameter was blocked: the negative prompt if the filter lets the prompt pass without it."""
        if answer.kind == "upload":
            return "image"
        if prompt.negative is not None:
            alone = await self._ask(answer.workers, "check_prompts", "prompt", Prompt(prompt.text), moderation)
            if alone is not None and alone.failure is None and strictest(alone.findings) != BLOCK:
                return "negative_prompt"
        return "prompt"


def _unavailable(workers: Workers) -> FilterUnavailableError:
    message = f"content filter {workers.spec.label} did not answer, and nothing that it has not seen is let out"
    return FilterUnavailableError(message, retry_after_s=workers.retry_after_s)


def _expected(before_s: float, taken_s: float) -> float:
    return taken_s if before_s == 0 else _KEPT * before_s + (1 - _KEPT) * taken_s
