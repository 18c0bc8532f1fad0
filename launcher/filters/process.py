"""The process of a content filter, which ends with its front-end."""

from __future__ import annotations

import os
import resource
import socket
import traceback
from collections.abc import Sequence
from contextlib import suppress

from engine.errors import Krea2Error
from launcher import socket_frames
from launcher.filters.exchange import Failed, Marked, NotUp, Scored, Up, Work, check_scores, decode_work
from launcher.filters.loading import load, methods_of, thresholds_of
from launcher.filters.protocol import Filter, Picture, Unavailable
from launcher.messages.configs import FilterConfig
from launcher.messages.encoding import describe, encode
from launcher.processes import read_config, watch_parent


def run_filter() -> None:
    """Be a filter for its whole life: its configuration comes on stdin, its end when stdin ends."""
    config = read_config(FilterConfig)
    watch_parent(lambda _: os._exit(0))
    with suppress(OSError, ValueError):  # no prompt or picture gets to a disk
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=config.socket_fd) as front_end, suppress(EOFError, ConnectionError):
        try:
            made = load(config.spec)
            up = Up(methods_of(made, config.spec), thresholds_of(made))
        except BaseException as error:  # also of a module that exits
            message = str(error) if isinstance(error, ValueError | Krea2Error) else describe(error)
            socket_frames.send(front_end, encode(NotUp(message)))
            return
        socket_frames.send(front_end, encode(up))
        while True:
            _serve(front_end, made)


def _serve(front_end: socket.socket, made: Filter) -> None:
    """Do what is wanted next. Raises `EOFError` once there is no more."""
    work = decode_work(socket_frames.receive_message(front_end))
    pictures = [
        Picture(
            head.width,
            head.height,
            socket_frames.receive(front_end, head.width * head.height * 3),
            head.kind,
            head.prompt,
        )
        for head in work.pictures
    ]
    marks: Sequence[bytes] = ()
    answer: Scored | Marked | Failed
    try:
        if hasattr(made, "patience_s"):
            made.patience_s = work.patience_s
        if work.method == "mark_images":
            marks, answer = _marked(made, pictures), Marked()
        else:
            answer = Scored(_scores(made, work, pictures))
    except MemoryError as error:
        answer = Failed("memory", describe(error))
    except Unavailable as error:
        answer = Failed("unavailable", str(error) or "unavailable")
    except _GarbageError as error:
        answer = Failed("garbage", str(error))
    except Exception as error:
        traceback.print_exc()
        answer = Failed("error", describe(error))
    socket_frames.send(front_end, encode(answer), *marks)


class _GarbageError(Exception):
    """What a filter returned is not what it must."""


def _scores(made: Filter, work: Work, pictures: Sequence[Picture]) -> tuple[dict[str, float], ...]:
    answered = made.check_prompts(work.prompts) if work.method == "check_prompts" else made.check_images(pictures)
    _count(answered, len(work.prompts or pictures))
    try:
        return tuple(map(check_scores, answered))
    except ValueError as error:
        raise _GarbageError(str(error)) from None


def _marked(made: Filter, pictures: Sequence[Picture]) -> Sequence[bytes]:
    answered = made.mark_images(pictures)
    _count(answered, len(pictures))
    for marked, picture in zip(answered, pictures, strict=True):
        if not isinstance(marked, bytes) or len(marked) != len(picture.rgb):
            raise _GarbageError(f"a marked picture must be {len(picture.rgb)} bytes")
    return answered


def _count(answered: object, expected: int) -> None:
    if not isinstance(answered, Sequence) or isinstance(answered, str | bytes) or len(answered) != expected:
        raise _GarbageError(f"an answer must be a list of {expected}, got a {type(answered).__name__}")
