"""Writes down what a front-end lets out, and what its filters refuse."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from engine.errors import ArgumentError, Krea2Error, ServerError
from launcher.audit.entries import Entry, Found, encode, timestamp
from launcher.audit.hashes import dhash, hash_text, pixels_sha256, read_key, sha256
from launcher.audit.log import AuditLog
from launcher.audit.writer import AuditWriter
from launcher.filters.verdicts import Finding
from launcher.messages.api_keys import ANONYMOUS
from launcher.messages.configs import FrontendConfig
from launcher.requests.image_files import in_thread


class Asked(Protocol):
    """What was asked for, as the client said it or as it was checked."""

    @property
    def prompt(self) -> str: ...
    @property
    def negative_prompt(self) -> str | None: ...
    @property
    def moderation(self) -> str: ...
    @property
    def user(self) -> str | None: ...


class Trail:
    """Writes the lines of one front-end. Each method returns once its line is written.

    on_line: called with the event of each line that was written, and with `failed` for one that was not. Raises
    `ArgumentError` if the folder cannot be written to.
    """

    def __init__(self, config: FrontendConfig, on_line: Callable[[str], None]) -> None:
        assert config.audit_log is not None
        self._writer = AuditWriter(AuditLog(config.audit_log))
        try:
            self._key = read_key(config.audit_log)
        except OSError as error:
            problem = f"audit_log {config.audit_log}: its key cannot be read: {error.strerror}"
            raise ArgumentError(problem, parameter="audit_log") from None
        self._content, self._fail_open = config.audit_content, config.filter_fail_open
        self._model, self._on_line = config.engine.name, on_line

    @classmethod
    def of(cls, config: FrontendConfig, on_line: Callable[[str], None]) -> Trail | None:
        """Make one if the configuration wants it."""
        return None if config.audit_log is None else cls(config, on_line)

    def close(self) -> None:
        """Write no more than what waits."""
        self._writer.close()

    async def image(
        self,
        request_id: str,
        caller: str,
        asked: Asked,
        size: tuple[int, int],
        rgb: bytes,
        file: bytes,
        findings: Iterable[Finding],
        **more: Any,
    ) -> None:
        """Write that a picture is about to leave: pixels of height · width · 3 bytes, and the file that they became.

        more: further fields of `Entry`, as the event and `index`. Raises `ServerError` if that cannot be written, and
        the picture is not to leave.
        """
        entry = self._entry(request_id, caller, asked, findings, **{"event": "image", "model": self._model} | more)
        line = await in_thread(size[0] * size[1], _line_of_picture, entry, size, rgb, file)
        try:
            await self._write(entry.event, line)
        except ServerError:
            if not self._fail_open:
                raise

    async def refused(
        self,
        request_id: str,
        caller: str,
        asked: Asked,
        error: Krea2Error,
        picture: tuple[tuple[int, int], bytes] | None = None,
        **more: Any,
    ) -> None:
        """Write that a request was refused, or with a picture, its size and pixels, that this is held back."""
        findings: tuple[Finding, ...] = getattr(error, "findings", ())
        event = "refused" if picture is None else "held"
        told = {"event": event, "code": error.code, "parameter": error.parameter}
        entry = self._entry(request_id, caller, asked, findings, **told | more)
        if picture is None:
            line = encode(entry)
        else:
            entry = msgspec.structs.replace(entry, model=self._model)
            line = await in_thread(len(picture[1]) // 3, _line_of_picture, entry, *picture, None)
        try:
            await self._write(event, line)
        except ServerError:  # which is in the log: nothing leaves in any case
            return

    async def _write(self, event: str, line: bytes) -> None:
        try:
            await self._writer.write(line)
        except ServerError:
            self._on_line("failed")
            raise
        self._on_line(event)

    def _entry(self, request_id: str, caller: str, asked: Asked, findings: Iterable[Finding], **more: Any) -> Entry:
        found = tuple(
            Found(filter=it.filter, kind=it.kind, action=it.action, category=it.category, score=round(it.score, 4))
            for it in findings
        )
        negative = asked.negative_prompt or None
        content: dict[str, Any] = {"prompt": asked.prompt, "negative_prompt": negative} if self._content else {}
        return Entry(
            time=timestamp(time.time()),
            request_id=request_id,
            key=None if caller == ANONYMOUS else caller,
            user=asked.user,
            moderation=asked.moderation,
            findings=found,
            prompt_hash=hash_text(self._key, asked.prompt),
            negative_prompt_hash=None if negative is None else hash_text(self._key, negative),
            **content,
            **more,
        )


def _line_of_picture(entry: Entry, size: tuple[int, int], rgb: bytes, file: bytes | None) -> bytes:
    return encode(
        msgspec.structs.replace(
            entry,
            width=size[0],
            height=size[1],
            file_sha256=None if file is None else sha256(file),
            pixels_sha256=pixels_sha256(*size, rgb),
            dhash=dhash(*size, rgb),
        )
    )
