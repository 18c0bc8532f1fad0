"""What an image file says of how it was made, in the way that each format can hold: as JSON, to be read again by
`read_made`, and as the text of AUTOMATIC1111's web UI, which other programs read."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launcher.requests.infotext import infotext

if TYPE_CHECKING:
    from PIL import Image

_JSON_CHUNK = "krea2"  # never "prompt" or "workflow", which ComfyUI takes for a graph of its own
_TEXT_CHUNK = "parameters"
_XMP_CHUNK = "XML:com.adobe.xmp"
_EXIF_DESCRIPTION, _EXIF_FOLDER, _EXIF_COMMENT = 0x010E, 0x8769, 0x9286
_UNICODE = b"UNICODE\0"  # before a comment in UTF-16, big-endian as the file that piexif makes, and so A1111
_MOST_JPEG_BYTES = 65_533  # of EXIF


def save_options(image_format: str, made: Mapping[str, Any] | None, *, xmp: bytes | None = None) -> dict[str, Any]:
    """Return the options of Pillow's `save` for a file in this format: png, jpeg or webp.

    xmp: says where the picture comes from; made: prompt, seed and settings; None for none. PNG holds them as text
    chunks, the others as EXIF: JSON in its description, A1111's text as the user's comment; JPEG, where very long ones
    do not fit, then has the first or none. PNG is compressed lightly: level 1 takes half of the default's time for a
    sixth more bytes.
    """
    from PIL.PngImagePlugin import PngInfo

    options: dict[str, Any] = {
        "png": {"compress_level": 1},
        "jpeg": {"quality": 95, "subsampling": 0},
        "webp": {"quality": 90},
    }[image_format]
    if image_format == "png":
        chunks = options["pnginfo"] = PngInfo()
        if xmp is not None:
            chunks.add_itxt(_XMP_CHUNK, xmp.decode())
    elif xmp is not None:
        options["xmp"] = xmp
    if made is None:
        return options
    described, text = json.dumps(made), infotext(made)
    if image_format == "png":
        # Programs disagree on what other letters in a tEXt chunk are; not all read iTXt.
        (chunks.add_text if text.isascii() else chunks.add_itxt)(_TEXT_CHUNK, text)
        chunks.add_text(_JSON_CHUNK, described)
        return options
    for comment in (text, ""):
        exif = _exif(described, comment)
        if image_format == "webp" or len(exif) <= _MOST_JPEG_BYTES:
            return options | {"exif": exif}
    return options


def read_made(image: Image.Image) -> dict[str, Any] | None:
    """Return the prompt, seed and settings that `save_options` had written into a file of ours; None for none."""
    try:
        if image.format != "PNG":
            made = json.loads(image.getexif()[_EXIF_DESCRIPTION])
        elif _JSON_CHUNK in image.info:
            made = json.loads(image.info[_JSON_CHUNK])
        else:  # as older releases wrote it
            prompt, seed = str(image.info["prompt"]), int(image.info["seed"])
            made = {"prompt": prompt, "seed": seed, **json.loads(image.info["settings"])}
    except (KeyError, ValueError, TypeError):  # a file of another program
        return None
    return made if isinstance(made, dict) and "prompt" in made else None


def read_xmp(image: Image.Image) -> bytes | None:
    """Return the XMP that a file has, whoever wrote it; None for none."""
    xmp = image.info.get("xmp")
    return xmp if isinstance(xmp, bytes) and xmp else None


def read_infotext(image: Image.Image) -> str | None:
    """Return the text in A1111's format that a file has, whoever wrote it, or that one of ours would have; None for
    none."""
    text = image.info.get(_TEXT_CHUNK)
    comment = image.getexif().get_ifd(_EXIF_FOLDER).get(_EXIF_COMMENT)
    if not text and isinstance(comment, bytes) and comment.startswith(_UNICODE):
        text = comment.removeprefix(_UNICODE).decode("utf-16-be", "replace")
    if text:
        return str(text)
    made = read_made(image)
    return None if made is None else infotext(made)


def _exif(description: str, comment: str) -> bytes:
    """Make EXIF of two texts, the first in ASCII. By hand: Pillow would write the other as numbers, not as "undefined",
    which it has to be."""
    first = description.encode("ascii") + b"\0"
    if len(first) % 2:  # offsets are even, and readers take off one zero
        first = b" " + first
    second = _UNICODE + comment.encode("utf-16-be")
    start = 38  # of what lies behind the header of 8 bytes and the first folder, of two entries
    folder = start + len(first)
    return b"".join((
        b"Exif\0\0",
        struct.pack(">2sHI", b"MM", 42, 8),
        struct.pack(">HHHIIHHIII", 2, _EXIF_DESCRIPTION, 2, len(first), start, _EXIF_FOLDER, 4, 1, folder, 0),
        first,
        struct.pack(">HHHIII", 1, _EXIF_COMMENT, 7, len(second), folder + 18, 0),
        second,
    ))  # fmt: skip
