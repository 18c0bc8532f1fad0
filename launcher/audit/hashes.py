"""Knows pictures and prompts again: hashes of files, of pixels, of what is seen, and of texts."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress

_KEY_FILE = "prompt-hashes.key"
_KEY_BYTES = 32
_COLUMNS, _ROWS = 9, 8  # of the small picture, whose neighbours are compared: 64 bits
_LEAST_STEP = 1  # levels of 255 that a neighbour must be darker by at least, or noise of a flat area would count
BITS = (_COLUMNS - 1) * _ROWS


def sha256(data: bytes) -> str:
    """Hash a file, in hex."""
    return hashlib.sha256(data).hexdigest()


def pixels_sha256(width: int, height: int, rgb: bytes) -> str:
    """Hash height · width · 3 bytes and their shape, in hex, whatever file they are in and whatever that says."""
    return hashlib.sha256(b"%d %d " % (width, height) + rgb).hexdigest()


def dhash(width: int, height: int, rgb: bytes) -> str:
    """Hash what is seen of a picture, in 16 hex digits, which stay about the same when it is scaled or compressed.

    A bit says whether one of 9 × 8 areas is darker than its left neighbour: Neal Krawetz' difference hash, of 2013.
    """
    from PIL import Image

    small = Image.frombytes("RGB", (width, height), rgb).resize(
        (_COLUMNS, _ROWS), Image.Resampling.BOX, reducing_gap=None
    )
    grey = small.convert("L").tobytes()
    bits = 0
    for row in range(_ROWS):
        for column in range(_COLUMNS - 1):
            left, right = grey[row * _COLUMNS + column], grey[row * _COLUMNS + column + 1]
            bits = bits << 1 | (left - right > _LEAST_STEP)
    return f"{bits:016x}"


def distance(one: str, other: str) -> int:
    """Count the bits that differ between two of `dhash`."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def hash_text(key: bytes, text: str) -> str:
    """Hash a prompt under a key, in hex: without it nobody can try prompts until one has the hash."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def read_key(folder: str) -> bytes:
    """Read the key of a folder's prompt hashes, after making it if there is none. Raises `OSError`."""
    if (known := known_key(folder)) is not None:
        return known
    file = os.path.join(folder, _KEY_FILE)
    new = f"{file}.{os.getpid()}"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as written:
        written.write(secrets.token_bytes(_KEY_BYTES))
    try:
        with suppress(FileExistsError):  # another process was faster, and its key counts
            os.link(new, file)
    finally:
        os.unlink(new)
    key = known_key(folder)
    assert key is not None  # it was there just now, whoever made it
    return key


def known_key(folder: str) -> bytes | None:
    """Read the key of a folder's prompt hashes; None if there is none. Raises `OSError`."""
    with suppress(FileNotFoundError), open(os.path.join(folder, _KEY_FILE), "rb") as known:
        return known.read()
    return None
