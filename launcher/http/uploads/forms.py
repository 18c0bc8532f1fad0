"""Reads `multipart/form-data`, bounded before anything is built of it, and in memory: no file is written to disk.

A text becomes a string, a file bytes; what the brackets of a name mean is in `fields.py`.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from engine.errors import ArgumentError, shortened
from launcher.http.uploads.fields import Part, nest

FORM_TYPE = "multipart/form-data"
MOST_PARTS = 256  # of a form: the routes know some fifty fields, and a list has a part for each item
MOST_HEADERS, LONGEST_HEADER = 8, 1024  # of a part; bytes
_LONGEST_BOUNDARY = 70  # characters (RFC 2046, 5.1.1)
_CHARSETS = {"utf-8": "utf-8", "utf8": "utf-8", "us-ascii": "ascii", "ascii": "ascii", "iso-8859-1": "latin-1"}
_PLAIN = ("", "binary", "8bit", "7bit")  # transfer encodings that encode nothing
_SHOWN = 40  # characters of what a client sent

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # of a damaged form the client is told, not the log


class FormLimits(NamedTuple):
    """How many bytes a text and a file may have, and a text that is a picture, as its field's name says: `pictures`."""

    text: int
    file: int
    written: int
    pictures: frozenset[str]


def is_form(content_type: str) -> bool:
    """Whether a Content-Type is that of a form with files."""
    return content_type.partition(";")[0].strip().lower() == FORM_TYPE


def read_form(body: bytes, content_type: str, limits: FormLimits) -> dict[str, Any]:
    """Read a form. A file without a name or content, as browsers send it where none was chosen, is left out.

    Raises `ArgumentError` for what is no form, is not whole, is written in a way that is not known, or exceeds a limit.
    """
    boundary = _boundary(content_type)
    delimiter = b"--" + boundary
    if body.count(delimiter) > MOST_PARTS + 1:  # for which the parser, which is Python, would take seconds
        raise ArgumentError(f"a form may have at most {MOST_PARTS} fields and files")
    reader = _Reader(limits)
    parser = MultipartParser(
        boundary, reader.callbacks(), max_header_count=MOST_HEADERS, max_header_size=LONGEST_HEADER
    )
    try:
        parser.write(body)
    except FormParserError as error:
        if not body.lstrip(b"\r\n").startswith(delimiter):
            told = "it does not begin with the boundary that Content-Type names"
        elif "Maximum header" in str(error):
            told = f"a part may have at most {MOST_HEADERS} headers of {LONGEST_HEADER} bytes"
        else:
            told = str(error)[:100]
        raise ArgumentError(f"the form cannot be read: {told}") from None
    if not reader.has_ended:
        raise ArgumentError("the form has no end: it was cut off, or its parts have another boundary than Content-Type")
    return nest(reader.parts)


def _boundary(content_type: str) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise ArgumentError(
            f"Content-Type {FORM_TYPE} names no boundary: leave this header to your program, as to curl -F, which knows"
        )
    if len(boundary) > _LONGEST_BOUNDARY:
        raise ArgumentError(f"a form's boundary must have at most {_LONGEST_BOUNDARY} characters, got {len(boundary)}")
    return boundary


class _Reader:
    """Takes what a parser finds, which is given the body as a whole, so that all of a part comes at once."""

    def __init__(self, limits: FormLimits) -> None:
        self._limits = limits
        self._headers: dict[str, str] = {}
        self._name = self._value = b""  # of a header
        self._content = b""
        self.parts: list[Part] = []
        self.has_ended = False

    def callbacks(self) -> Any:
        """What to call for what is found."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._take_name,
            "on_header_value": self._take_value,
            "on_header_end": self._end_header,
            "on_part_data": self._take_content,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._headers, self._content = {}, b""

    def _take_name(self, data: bytes, start: int, end: int) -> None:
        self._name, self._value = data[start:end], b""

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value = data[start:end]

    def _end_header(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1")

    def _take_content(self, data: bytes, start: int, end: int) -> None:
        name, is_file = self._described()
        most = self._limits.file if is_file else self._limits.text
        if not is_file and name.partition("[")[0] in self._limits.pictures:
            most = self._limits.written
        if (size := len(self._content) + end - start) > most:
            raise _about(name, f"must be at most {most} bytes, got {size}")
        self._content += data[start:end]

    def _end(self) -> None:
        name, is_file = self._described()
        content, self._content = self._content, b""
        if is_file:
            if content:
                self.parts.append(Part(name, content))
            elif _option(self._headers["content-disposition"], b"filename"):
                raise _about(name, "is an empty file, or one that had been read to its end before it was sent")
            return
        charset = _option(self._headers.get("content-type", ""), b"charset") or "utf-8"
        encoding = _CHARSETS.get(charset.lower())
        if encoding is None:
            raise _about(name, f"must be in UTF-8, got charset {_short(charset)}")
        try:
            self.parts.append(Part(name, content.decode(encoding)))
        except UnicodeDecodeError:
            raise _about(name, f"is not valid {encoding.upper()}") from None

    def _described(self) -> tuple[str, bool]:
        """The name of the part, and whether it is a file."""
        disposition, kind = self._headers.get("content-disposition", ""), self._headers.get("content-type", "")
        written = _option(disposition, b"name")
        if not disposition.lower().startswith("form-data") or not written:
            raise ArgumentError('each part of a form must have a header Content-Disposition: form-data; name="…"')
        name = written.encode("latin-1").decode("utf-8", "replace")
        encoding = self._headers.get("content-transfer-encoding", "").strip()
        if encoding.lower() not in _PLAIN:
            raise _about(name, f"must be sent as it is, got Content-Transfer-Encoding {_short(encoding)}")
        is_named = _option(disposition, b"filename") is not None or "filename*" in disposition.lower()
        return name, is_named or kind.lower().startswith(("image/", "application/octet-stream"))

    def _finish(self) -> None:
        self.has_ended = True


def _option(header: str, name: bytes) -> str | None:
    value = parse_options_header(header)[1].get(name)
    return None if value is None else value.decode("latin-1")


def _about(name: str, problem: str) -> ArgumentError:
    return ArgumentError(f"{_short(name)} {problem}", parameter=_short(name).partition("[")[0])


def _short(text: str) -> str:
    return ascii(shortened(text, _SHOWN)).strip("'")
