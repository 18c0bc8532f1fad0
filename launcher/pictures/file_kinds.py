"""Which kind of file a picture is, told by its first bytes, and what is wrong with one that cannot be read. Pure."""

from __future__ import annotations

import struct

from engine.errors import ArgumentError

KINDS = ("PNG", "JPEG", "WebP")
MOST_WEBP_PIXELS = 40_000_000  # libwebp and Pillow hold five copies of them, of four bytes a pixel

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", "GIF"),
    (b"%PDF", "PDF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"8BPS", "PSD"),
    (b"\0\0\x01\0", "ICO"),
    (b"qoif", "QOI"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"PK\x03\x04", "ZIP"),
    (b"iVBORw0KGgo", "base64 text"),
    (b"/9j/", "base64 text"),
    (b"UklGR", "base64 text"),
    (b"data:", "a data URL"),
    (b"http://", "a URL"),
    (b"https://", "a URL"),
)
# Brands of the ISO base media format, by their first letters.
_BRANDS = ((b"avi", "AVIF"), (b"he", "HEIC"), (b"mif", "HEIC"), (b"msf", "HEIC"), (b"", "a video"))


def kind_of(name: str, data: bytes) -> str:
    """Tell which of `KINDS` a file is. Raises `ArgumentError` about `name`, which says what it is otherwise."""
    if not data:
        raise ArgumentError(f"{name} is an empty file", parameter=name)
    if data.startswith(_PNG):
        return "PNG"
    if data.startswith(_JPEG):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    allowed = f"{name} must be a PNG, JPEG or WebP file"
    found = _other_kind(data)
    raise ArgumentError(f"{allowed}, got {found}" if found else f"{allowed}: it is none of these", parameter=name)


def check_bytes(name: str, data: bytes, most: int) -> None:
    """Raise `ArgumentError` about `name` if its file has more than `most` bytes."""
    if len(data) > most:
        got = f"got {len(data) / 1e6:.1f}"
        raise ArgumentError(f"{name} must be a file of at most {most / 1e6:g} MB, {got}", parameter=name)


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Read width and height of a WebP file from its header, before anything is made that large; None if it has none."""
    chunk, body = data[12:16], data[20:30]
    if chunk == b"VP8X" and len(body) == 10:
        width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
        return width, height
    if chunk == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and len(body) == 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", body[6:]))
        return width, height
    return None


def check_size(name: str, kind: str, size: tuple[int, int], most: int) -> None:
    """Raise `ArgumentError` for a picture of more pixels than may be decoded."""
    width, height = size
    if width * height > most:
        allowed = f"{name} must have at most {most / 1e6:g} megapixels"
    elif kind == "WebP" and width * height > MOST_WEBP_PIXELS:
        allowed = f"{name} must be a PNG or JPEG file above {MOST_WEBP_PIXELS / 1e6:g} megapixels"
    else:
        return
    found = f"{width} × {height}, which is {width * height / 1e6:.1f}"
    raise ArgumentError(f"{allowed}, got {found}", parameter=name)


def unreadable(name: str, kind: str, data: bytes, error: Exception) -> ArgumentError:
    """Make the error of a file that Pillow does not read, by what Pillow says and by how the file ends."""
    said = str(error)
    if isinstance(error, MemoryError):
        why = "it takes more memory than there is for it"
    elif "too large" in said or "MAX_TEXT" in said:
        why = "its texts or its colour profile are too large"
    elif "truncated" in said or _ends_early(kind, data):
        why = "the file ends too early"
    else:
        why = f"the {kind} file is damaged"
    return ArgumentError(f"{name} could not be read: {why}", parameter=name)


def _ends_early(kind: str, data: bytes) -> bool:
    if kind == "PNG":
        return b"IEND" not in data[-64:]
    if kind == "JPEG":
        return b"\xff\xd9" not in data[-64:]
    return int.from_bytes(data[4:8], "little") + 8 > len(data)


def _other_kind(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        return next(kind for brand, kind in _BRANDS if data[8:12].startswith(brand))
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    for beginning, kind in _BEGINNINGS:
        if data.startswith(beginning) or text.startswith(beginning):
            return kind
    lower = text.lower()
    if b"<svg" in lower:
        return "SVG"
    if lower.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if lower.startswith((b"{", b"[")):
        return "JSON"
    return None
