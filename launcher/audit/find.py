"""Finds lines of an audit log: by a picture, by its request, by whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from launcher.audit.entries import Entry
from launcher.audit.fingerprint import Fingerprint
from launcher.audit.hashes import distance
from launcher.messages.client_messages import SHOWN_ID

ALIKE = 8  # bits that differ, at most, of a picture that is taken for a copy


@dataclass(frozen=True)
class Match:
    """A line about a picture like the one that is looked for. how: its file is the same, or its pixels are, or it looks
    alike; differs: by how many of the bits of `dhash`, 0 to 64."""

    entry: Entry
    how: Literal["same file", "same pixels", "looks alike"]
    differs: int


def find_picture(entries: Iterable[Entry], picture: Fingerprint, *, most: int = ALIKE) -> list[Match]:
    """List what looks like a picture, the surest first: the same file, the same pixels, then by what differs.

    most: bits of `dhash` that may differ. Pictures alike in brightness, as of one shape on a plain ground, have about
    the same: what looks alike is where to look, and proves nothing.
    """
    matches = []
    for entry in entries:
        if entry.dhash is None:
            continue
        differs = distance(entry.dhash, picture.seen.dhash)
        if entry.file_sha256 == picture.file_sha256:
            matches.append(Match(entry, "same file", differs))
        elif entry.pixels_sha256 == picture.seen.pixels_sha256:
            matches.append(Match(entry, "same pixels", differs))
        elif differs <= most:
            matches.append(Match(entry, "looks alike", differs))
    order = ("same file", "same pixels", "looks alike")
    return sorted(
        matches,
        key=lambda match: (order.index(match.how), match.differs, match.entry.event == "preview", match.entry.time),
    )


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
