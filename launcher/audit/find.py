"""Finds lines of an audit log: by a picture, by its request, by whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from launcher.audit.entries import Entry
from launcher.audit.fingerprint import Fingerprint
from launcher.audit.hashes import distance
from launcher.messages.client_messages import SHOWN_ID

ALIKE = 8  # bits that differ, at most, of a picture that is taken for a copy


How = Literal["same file", "same pixels", "its request", "looks alike"]
_SUREST_FIRST: tuple[How, ...] = get_args(How)


@dataclass(frozen=True)
class Match:
    """A line that may be about the picture that is looked for. how: its file is the same, or its pixels are, or it is
    of the same request, or it looks alike; differs: by how many of the bits of `dhash`, 0 to 64, None if unknown."""

    entry: Entry
    how: How
    differs: int | None


def find_picture(entries: Iterable[Entry], picture: Fingerprint, *, most: int = ALIKE) -> list[Match]:
    """List what looks like a picture, the surest first: the same file, the same pixels, then by what differs.

    most: bits of `dhash` that may differ. Pictures alike in brightness, as of one shape on a plain ground, have about
    the same: what looks alike is where to look, and proves nothing.
    """
    seen = picture.seen
    as_reported = Entry(
        time="", event="report", file_sha256=picture.file_sha256, pixels_sha256=seen.pixels_sha256, dhash=seen.dhash
    )
    return find_reported(entries, as_reported, most=most)


def find_reported(entries: Iterable[Entry], report: Entry, *, most: int = ALIKE) -> list[Match]:
    """List what a report may be about, by its picture or its request, the surest first; most: as for a picture."""
    matches = []
    for entry in entries:
        if entry.event == "report":
            continue
        differs = None if entry.dhash is None or report.dhash is None else distance(entry.dhash, report.dhash)
        how = _how(entry, report)
        if how is None and differs is not None and differs <= most:
            how = "looks alike"
        if how is not None:
            matches.append(Match(entry, how, differs))
    return sorted(
        matches,
        key=lambda match: (
            _SUREST_FIRST.index(match.how), match.differs or 0, match.entry.event == "preview", match.entry.time,
        ),
    )  # fmt: skip


def _how(entry: Entry, report: Entry) -> How | None:
    if report.file_sha256 is not None and entry.file_sha256 == report.file_sha256:
        return "same file"
    if report.pixels_sha256 is not None and entry.pixels_sha256 == report.pixels_sha256:
        return "same pixels"
    if report.request_id is not None and of_request(entry, report.request_id):
        return "its request"
    return None


def of_request(entry: Entry, request_id: str) -> bool:
    """Whether a line is about a request, by the engine's id or by the X-Request-ID of its answer, with which that
    begins."""
    known = entry.request_id or ""
    return known == request_id or ("." in known and known.rpartition(".")[0] == request_id[:SHOWN_ID])


def select(
    entries: Iterable[Entry],
    *,
    events: tuple[str, ...] = (),
    request_id: str | None = None,
    key: str | None = None,
    user: str | None = None,
    prompt_hash: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Iterator[Entry]:
    """Yield the lines that have all of these. since, until: times as lines have them, or as much as is meant of one."""
    for entry in entries:
        if (
            (not events or entry.event in events)
            and (request_id is None or of_request(entry, request_id))
            and (key is None or entry.key == key)
            and (user is None or entry.user == user)
            and (prompt_hash is None or prompt_hash in (entry.prompt_hash, entry.negative_prompt_hash))
            and (since is None or entry.time >= since)
            and (until is None or entry.time[: len(until)] <= until)
        ):
            yield entry
