"""Takes reports of pictures: a line each, with the picture's hashes, and itself if the operator wants that."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import suppress
from typing import Any

from engine.errors import ArgumentError, QueueFullError, ServerError
from launcher.audit.entries import Entry, encode, timestamp
from launcher.audit.fingerprint import Fingerprint, fingerprint
from launcher.audit.log import AuditLog
from launcher.audit.writer import AuditWriter
from launcher.logs import log_event
from launcher.threads import in_own_thread

PICTURES_FOLDER = "reported"
MOST_KEPT_BYTES = 2**30  # of pictures that were reported
MOST_LINES_BYTES = 2**28  # of reports without their pictures, whoever sends them: the audit log needs the disk, too
_MOST_WAITING = 8  # reports whose pictures wait to be looked at
_RETRY_S = 5.0


class Reports:
    """Takes the reports that come to one process, in files of their own beside the audit log's, from the first on.

    keep_pictures: keep pictures as well, until they fill `MOST_KEPT_BYTES`.
    """

    def __init__(self, folder: str, *, keep_pictures: bool) -> None:
        self._folder, self._keep_pictures = folder, keep_pictures
        self._writer: AuditWriter | None = None
        self._turn, self._opening = asyncio.Lock(), asyncio.Lock()
        self._waiting = self._written = 0

    async def take(
        self,
        *,
        request_id: str | None,
        picture: bytes | None,
        reason: str,
        contact: str | None,
        key: str | None,
    ) -> str:
        """Write a report down. Returns its id.

        Raises `ArgumentError` about an image that cannot be read, `QueueFullError` if many wait already, and
        `ServerError` if it cannot be written.
        """
        report = f"report-{secrets.token_hex(8)}"
        seen = name = None
        if picture is not None:
            seen = await self._look(picture)
            name = await in_own_thread(lambda: self._keep(report, picture, seen)) if self._keep_pictures else None
        entry = Entry(
            time=timestamp(time.time()), event="report", report=report, request_id=request_id, key=key, reason=reason,
            contact=contact, picture=name, **_described(seen),
        )  # fmt: skip
        line = encode(entry)
        writer = await self._open()
        if self._written + len(line) > MOST_LINES_BYTES:
            raise QueueFullError("reports fill the room that there is for them: somebody has to read them first")
        self._written += len(line)
        await writer.write(line)
        log_event("picture reported", level="warning", report=report, request_id=request_id)
        return report

    async def _look(self, picture: bytes) -> Fingerprint:
        if self._waiting >= _MOST_WAITING:
            raise QueueFullError("many reports wait already: come back later", retry_after_s=_RETRY_S)
        self._waiting += 1
        try:
            async with self._turn:
                return await in_own_thread(lambda: fingerprint(picture))
        finally:
            self._waiting -= 1

    def _keep(self, report: str, picture: bytes, seen: Fingerprint) -> str | None:
        """Write the picture to a file. Returns its name in the folder, or None if there is no room for it."""
        folder = os.path.join(self._folder, PICTURES_FOLDER)
        name = f"{report}.{seen.seen.kind.lower()}"
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            with os.scandir(folder) as files:
                if sum(file.stat().st_size for file in files) + len(picture) > MOST_KEPT_BYTES:
                    log_event("reported picture not kept", level="warning", report=report, reason="the folder is full")
                    return None
            path = os.path.join(folder, name)
            try:
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(picture)
            except OSError:
                with suppress(OSError):
                    os.unlink(path)
                raise
        except OSError as error:
            log_event("reported picture not kept", level="error", report=report, reason=error.strerror or str(error))
            return None
        return os.path.join(PICTURES_FOLDER, name)

    async def _open(self) -> AuditWriter:
        """Open the log for the first report."""
        async with self._opening:
            if self._writer is None:
                try:
                    log, self._written = await in_own_thread(self._begin)
                    self._writer = AuditWriter(log)
                except ArgumentError as error:
                    log_event("audit log not written", level="error", file=self._folder, reason=error.message)
                    raise ServerError("reports cannot be written down here", retry_after_s=_RETRY_S) from None
            return self._writer

    def _begin(self) -> tuple[AuditLog, int]:
        """Open the log. Returns it, and how many bytes of reports the folder has."""
        log = AuditLog(self._folder, "reports")
        with suppress(OSError), os.scandir(self._folder) as files:
            return log, sum(file.stat().st_size for file in files if file.name.startswith("reports"))
        return log, 0


def _described(picture: Fingerprint | None) -> dict[str, Any]:
    if picture is None:
        return {}
    seen = picture.seen
    return {
        "file_sha256": picture.file_sha256,
        "pixels_sha256": seen.pixels_sha256,
        "dhash": seen.dhash,
        "width": seen.width,
        "height": seen.height,
        "format": seen.kind.lower(),
    }
