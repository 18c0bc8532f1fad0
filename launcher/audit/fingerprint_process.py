"""The process that looks at one picture: its file comes on stdin, and what it shows goes to stdout."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress

import msgspec

from engine.errors import ArgumentError
from launcher.audit.fingerprint import MOST_BYTES, MOST_PIXELS, Seen, Unreadable
from launcher.audit.hashes import dhash, pixels_sha256
from launcher.pictures.decoding import PictureFile, configure_pillow
from launcher.pictures.file_kinds import kind_of
from launcher.pictures.geometry import Canvas, Size

_MOST_MEMORY = 1_000_000_000  # bytes of address space
_MOST_S = 20  # of the processor's time
_NICENESS = 10  # images that are drawn go before


def run_fingerprint() -> None:
    """Look at a picture for its whole life."""
    configure_pillow()
    os.nice(_NICENESS)
    limits = ((resource.RLIMIT_AS, _MOST_MEMORY), (resource.RLIMIT_CPU, _MOST_S), (resource.RLIMIT_CORE, 0))
    for limit, most in limits:
        with suppress(OSError, ValueError):  # macOS has no such limit of memory
            resource.setrlimit(limit, (most, most))
    answer: Seen | Unreadable
    try:
        answer = look(sys.stdin.buffer.read(MOST_BYTES + 1))
    except ArgumentError as error:
        answer = Unreadable(message=error.message)
    except MemoryError:
        answer = Unreadable(message="image could not be read: it takes more memory than there is for it")
    os.write(1, msgspec.json.encode(answer))


def look(data: bytes) -> Seen:
    """Say what a file shows, upright and without transparency. Raises `ArgumentError` for one that is no picture."""
    file = PictureFile("image", data, MOST_PIXELS)
    _, image = file.picture(_whole)
    rgb = image.tobytes()
    width, height = image.size
    return Seen(
        kind=kind_of("image", data),
        width=width,
        height=height,
        pixels_sha256=pixels_sha256(width, height, rgb),
        dhash=dhash(width, height, rgb),
    )


def _whole(size: Size) -> Canvas:
    return Canvas(size, size, (0.0, 0.0, 1.0, 1.0), (0, 0, *size))
