"""Defines the lines of an audit log, each a JSON object, and reads them back."""

from __future__ import annotations

import glob
import gzip
import os
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from engine.errors import ArgumentError

EVENTS = ("image", "preview", "held", "refused", "report")
_LONGEST = 4 * 2**20  # bytes of a line


class Found(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a filter said: of a prompt, an upload, a preview or an image."""

    filter: str
    kind: str
    action: str
    category: str
    score: float = 0.0


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line: what happened when, to which request, of whom. What is not known, or not of this event, is left out.

    event: an image or a preview that left, an image that was held back, a request that was refused for its prompt or
    uploads, or a report. request_id: the engine's; over HTTP it begins with the X-Request-ID. key: the name of the API
    key; user: as the client said. action: what the filters' findings came to. prompt_hash: see `hash_text`. prompt and
    negative_prompt: only where the operator asked for content. index: of the image among its request's. pixels_sha256
    and dhash: of what was drawn, before it was written as a file. report: a report's own id; picture: the name of its
    file, where kept. A flat record.
    """

    time: str
    event: Literal["image", "preview", "held", "refused", "report"]
    request_id: str | None = None
    key: str | None = None
    user: str | None = None
    moderation: str | None = None
    action: str | None = None
    code: str | None = None
    parameter: str | None = None
    findings: tuple[Found, ...] = ()
    prompt_hash: str | None = None
    negative_prompt_hash: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    index: int | None = None
    step: int | None = None
    seed: int | None = None
    model: str | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    file_sha256: str | None = None
    pixels_sha256: str | None = None
    dhash: str | None = None
    report: str | None = None
    reason: str | None = None
    contact: str | None = None
    picture: str | None = None


def timestamp(seconds: float) -> str:
    """Write a time, in seconds since 1970, as lines have it: UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode(entry: Entry) -> bytes:
    """Write a line, with its end."""
    return msgspec.json.encode(entry) + b"\n"


_decode = msgspec.json.Decoder(Entry).decode


class Entries:
    """Reads all lines of a folder, those of reports and of files that were rotated, too, file by file. logrotate's are
    among them, which has numbers or dates behind their names and may compress them by gzip.

    unread: how many lines were none, as one that a killed process left half. Raises `ArgumentError` if the folder is
    none, or holds no log.
    """

    def __init__(self, folder: str) -> None:
        self.unread = 0
        within = os.path.join(glob.escape(folder), "*.jsonl")
        self._files = sorted([*glob.glob(within), *glob.glob(f"{within}[.-][0-9]*"), *glob.glob(f"{within}.gz")])
        if not self._files:
            told = "has no audit log" if os.path.isdir(folder) else "is no folder"
            raise ArgumentError(f"audit_log {folder} {told}", parameter="audit_log")

    def __iter__(self) -> Iterator[Entry]:
        for file in self._files:
            try:
                with gzip.open(file) if file.endswith(".gz") else open(file, "rb") as lines:
                    while line := lines.readline(_LONGEST):
                        if (entry := self._read(line)) is not None:
                            yield entry
            except (OSError, EOFError, zlib.error) as error:
                problem = getattr(error, "strerror", None) or error
                raise ArgumentError(f"audit_log {file} cannot be read: {problem}", parameter="audit_log") from None

    def _read(self, line: bytes) -> Entry | None:
        if not line.strip():
            return None
        try:
            return _decode(line)
        except (msgspec.DecodeError, RecursionError):
            self.unread += 1
            return None


def plain(entry: Entry) -> dict[str, Any]:
    """Give what a line has."""
    known: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(entry))
    return known
