"""What a front-end asks of its content filters, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from launcher.filters.protocol import Picture, Prompt
from launcher.filters.verdicts import ALLOW, Finding


@dataclass(frozen=True)
class Judged:
    """What all filters say of a prompt or a picture.

    findings: of all filters, also of those that would only have it logged. action: the strictest, one of
    `launcher/filters/verdicts.py`. rgb: the picture as it may be sent, where that is not as it came: blurred, marked or
    both; None where it is, and where it is blocked. warnings: what could not be checked, for the client.
    """

    findings: tuple[Finding, ...] = ()
    action: str = ALLOW
    rgb: bytes | None = None
    warnings: tuple[str, ...] = ()


class Checks(Protocol):
    """The filters of one front-end. Whatever they raise, what they were asked about may not leave.

    not_ready: why they do not answer; None if they do. checks_images: whether any of them looks at pictures, or marks
    them; so it is taken to be until they are up. image_s: what the check of an image may be expected to take, in
    seconds; 0 while that is not known. That of a prompt is over before there is an estimate.
    """

    @property
    def not_ready(self) -> str | None: ...

    @property
    def checks_images(self) -> bool: ...

    @property
    def image_s(self) -> float: ...

    async def start(self) -> None:
        """Start the filters. Returns when all are up; raises `LaunchError`."""

    async def check_prompt(self, prompt: Prompt, uploads: Sequence[Picture], *, moderation: str) -> Judged:
        """Check a prompt and pictures that came with it. Raises `ModerationBlockedError` and
        `FilterUnavailableError`."""

    async def check_image(self, picture: Picture, *, moderation: str) -> Judged:
        """Check an image or a preview, and blur or mark it. Raises `FilterUnavailableError`."""

    def close(self) -> None:
        """End what was started. Whoever waits for an answer hears `FilterUnavailableError`."""
