"""What people have in place of a file that was not downloaded, or not unpacked, told by how it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import shortened

LOOKED_AT = 512  # bytes
_POINTER = b"version https://git-lfs"
_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\xfd7zXZ\0": "xz",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
}
_ANSWERS = ("error", "errors")  # keys of what servers answer in place of a file
_MOST_OF_AN_ANSWER = 8  # keys
_BLANKS = b" \t\r\n\xef\xbb\xbf"  # and a byte order mark
_SHORTEST_TEXT = 8  # characters: what would be the length of a header, and one far beyond any
_SHOWN = 80  # characters


def in_its_place(start: bytes) -> str | None:
    """Return what a file is that begins with these bytes, as an error says it, and what to do: a pointer of Git LFS, a
    page of the web, an archive; None for anything else. start: the first `LOOKED_AT`, or all."""
    if start.lower().startswith(_POINTER):
        return "is a pointer of Git LFS, not the file that it stands for; run in its folder: git lfs pull"
    if start.lstrip(_BLANKS).startswith(b"<"):
        return "is a page of the web, not the file that it should be; download the file itself"
    for beginning, archive in _ARCHIVES.items():
        if start.startswith(beginning):
            return f"is a {archive} archive: unpack it, and give what is in it"
    return None


def text_in_its_place(start: bytes) -> str | None:
    """As `in_its_place`, of a file that is no text: if it begins with a line of it, that is what a server answered."""
    line = start.lstrip(_BLANKS).splitlines()[:1]
    text = line[0].decode("utf-8", "replace") if line else ""
    if len(text) < _SHORTEST_TEXT or not text.isprintable() or "\ufffd" in text[:-1]:
        return None
    return f"is text, not the file that it should be, which must be downloaded again: {shortened(text, _SHOWN)}"


def answer_in_its_place(values: Mapping[str, Any]) -> str | None:
    """As `in_its_place`, of a file that is a json object: an error that a server answered."""
    key = next((each for each in _ANSWERS if each in values), None)
    if key is None or len(values) > _MOST_OF_AN_ANSWER:
        return None
    return f"is a server's answer, not the file, which must be downloaded again: {shortened(str(values[key]), _SHOWN)}"
