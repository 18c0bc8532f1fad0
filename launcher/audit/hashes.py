"""Knows pictures and prompts again: hashes of files, of pixels, of what is seen, and of texts."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import os
import secrets
from contextlib import suppress

_KEY_FILE = "prompt-hashes.key"
_LOCK_FILE = ".prompt-hashes.lock"
_KEY_BYTES = 32
_SHORTEST_KEY, _LONGEST_KEY = 16, 4096
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
    path = os.path.join(folder, _LOCK_FILE)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # or another process would make another one
        if (known := known_key(folder)) is not None:
            return known
        file, key = os.path.join(folder, _KEY_FILE), secrets.token_bytes(_KEY_BYTES)
        with os.fdopen(os.open(f"{file}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as new:
            new.write(key)
        os.rename(f"{file}.new", file)
        return key


def known_key(folder: str) -> bytes | None:
    """Read the key of a folder's prompt hashes; None if there is none. Raises `OSError`."""
    with suppress(FileNotFoundError), open(os.path.join(folder, _KEY_FILE), "rb") as file:
        key = file.read(_LONGEST_KEY)
        if len(key) < _SHORTEST_KEY:
            raise OSError(errno.EINVAL, f"it has {len(key)} bytes, and at least {_SHORTEST_KEY} are needed")
        return key
    return None
