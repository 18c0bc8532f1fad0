"""Has a picture's file looked at by a process of its own, under limits, since it comes from anybody."""

from __future__ import annotations

import subprocess

import msgspec

from engine.errors import ArgumentError, ServerError
from launcher.audit.hashes import sha256
from launcher.logs import log_event
from launcher.pictures.file_kinds import check_bytes
from launcher.processes import child_environment, python_command

MOST_BYTES, MOST_PIXELS = 50_000_000, 64_000_000  # of a picture's file
WAIT_S = 60.0  # for its process
_MOST_ANSWER = 4096  # bytes


class Seen(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a file shows: its kind, size and hashes, as `hashes.py` makes them."""

    kind: str
    width: int
    height: int
    pixels_sha256: str
    dhash: str


class Unreadable(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Why a file shows nothing."""

    message: str


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """A file's own hash, and what it shows."""

    file_sha256: str
    seen: Seen


_decode = msgspec.json.Decoder(Seen | Unreadable).decode


def fingerprint(data: bytes, name: str = "image") -> Fingerprint:
    """Look at a PNG, JPEG or WebP file, in a process that ends with that. Blocks.

    Raises `ArgumentError` about `name` for one that cannot be read, and `ServerError` if there can be no process.
    """
    check_bytes(name, data, MOST_BYTES)
    try:
        done = subprocess.run(
            python_command("_fingerprint"),
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WAIT_S,
            start_new_session=True,
            env=child_environment(),
        )
        answer = _decode(done.stdout[:_MOST_ANSWER])
    except subprocess.TimeoutExpired:
        log_event("picture process lost", level="warning", reason=f"did not end within {WAIT_S:g} s", picture=name)
        raise ArgumentError(f"{name} took longer than {WAIT_S:g} s to read", parameter=name) from None
    except OSError as error:
        raise ServerError(f"pictures cannot be read: no process can be started: {error.strerror}") from None
    except msgspec.DecodeError:
        log_event("picture process lost", level="warning", reason=f"exit code {done.returncode}", picture=name)
        raise ArgumentError(f"{name} could not be read: the process for it crashed over it", parameter=name) from None
    if isinstance(answer, Unreadable):
        told = answer.message if name == "image" else answer.message.replace("image", name, 1)
        raise ArgumentError(told, parameter=name)
    return Fingerprint(file_sha256=sha256(data), seen=answer)
