"""What benchmarks have in common on the command line: types of options, and how a benchmark ends."""

from __future__ import annotations

import argparse
import errno
import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from bench.measure.lost import LOST
from bench.measure.writing import all_written
from engine.config.degrees import MOST_RANKS, Degrees
from engine.errors import ArgumentError

INTERRUPTED, TERMINATED = 130, 143  # the exit status after Ctrl-C, and after SIGTERM
PICTURE_FILES = (".png", ".jpg", ".webp")
SIDE_MULTIPLE = 16  # pixels of a token's side
_GRACE_S, _AGAIN_S = 10.0, 0.2  # to let go of what is held, after SIGTERM; until the main thread is told again
_STDERR = 2  # whatever sys.stderr is by then
_FULL = (errno.ENOSPC, errno.EDQUOT)


def json_file(text: str) -> Path:
    """A file that lines can be added to, its folder made if need be: found out before anything is measured. A full disk
    is no reason to measure nothing. Raises `ArgumentTypeError`."""
    file = Path(text)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        if error.errno in _FULL:
            return file  # results will go to stdout
        raise argparse.ArgumentTypeError(f"must be a file that can be written, got {text}: {error.strerror}") from None
    return file


def duration(text: str) -> float:
    """In seconds, 0 or more. Raises `ArgumentTypeError`."""
    return not_negative(text, "a number of seconds")


def not_negative(text: str, what: str = "a number") -> float:
    """0 or more. what: what it is, for the message. Raises `ArgumentTypeError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be {what}, 0 or more, got {text}")
    return value


def share_of(text: str) -> float:
    """From 0 to 1. Raises `ArgumentTypeError`."""
    value = not_negative(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, got {text}")
    return value


def picture_file(text: str) -> Path:
    """One of `PICTURE_FILES` that can be written. Raises `ArgumentTypeError`."""
    file = Path(text)
    if file.suffix.lower() not in PICTURE_FILES:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(PICTURE_FILES)}, got {text}")
    if not os.access(file.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"must be in a folder that exists and can be written, got {text}")
    return file


def positive(text: str) -> int:
    """A whole number above 0. Raises `ArgumentTypeError`."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text}")
    return int(text)


def image_side(text: str) -> int:
    """Of a square image, in pixels. Raises `ArgumentTypeError`."""
    if not (text.isdecimal() and int(text) > 0 and int(text) % SIDE_MULTIPLE == 0):
        raise argparse.ArgumentTypeError(f"must be a positive multiple of {SIDE_MULTIPLE}, got {text}")
    return int(text)


def image_sides(text: str) -> list[int]:
    """Several, comma-separated. Raises `ArgumentTypeError`."""
    return [image_side(word) for word in text.split(",")]


def modes(text: str) -> tuple[Degrees, ...]:
    """Ways to share a step between ranks, comma-separated: one, tp2, sp4, cfg, tp2xsp2, sp2xcfg and the like."""
    known = {
        degrees.name: degrees
        for degrees in (Degrees(tp, sp, cfg) for tp in (1, 2, 4) for sp in (1, 2, 4) for cfg in (1, 2))
        if degrees.ranks <= MOST_RANKS
    }
    words = text.split(",")
    if not set(words) <= set(known):
        raise argparse.ArgumentTypeError(f"must be of {', '.join(known)}, got {text}")
    return tuple(known[word] for word in words)


def check_positive(name: str, value: int) -> None:
    """Raises `ArgumentError`."""
    if value < 1:
        raise ArgumentError.of(name, "positive", value)


def parse_list(name: str, text: str, allowed: Sequence[str]) -> list[str]:
    """Comma-separated words. Raises `ArgumentError` if one is not allowed."""
    words = text.split(",")
    if not set(words) <= set(allowed):
        raise ArgumentError.of(name, f"comma-separated, of {', '.join(allowed)}", text)
    return words


def parse_sides(name: str, text: str, multiple: int) -> list[int]:
    """Comma-separated sides of square images in pixels. Raises `ArgumentError` if one is no multiple."""
    try:
        sides = [int(side) for side in text.split(",")]
    except ValueError:
        sides = [0]
    if any(side < multiple or side % multiple for side in sides):
        raise ArgumentError.of(name, f"comma-separated positive multiples of {multiple}", text)
    return sides


def end_with(main: Callable[[], int], *, stacks: bool = True) -> NoReturn:
    """End the process with what a benchmark's `main` returns, or with 1 for 0 if a result could not be written. Ctrl-C
    ends it without a traceback. A crash, and SIGTERM too, by which a benchmark that is not done in time is stopped,
    leave on stderr where every thread was. stacks: False has SIGTERM end it as Ctrl-C does, in one line."""
    if not faulthandler.is_enabled():
        faulthandler.enable(_STDERR)
    if stacks:
        faulthandler.register(signal.SIGTERM, _STDERR, all_threads=True, chain=True)
    else:
        _interrupt_at_sigterm()
    try:
        status = main()
    except _Terminated:
        print("stopped", file=sys.stderr)
        status = TERMINATED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = INTERRUPTED
    finally:
        if stacks:
            faulthandler.unregister(signal.SIGTERM)
    if status == LOST:  # nothing that uses the GPU at exit would come to an end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status or int(not all_written()))


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which what is running lets pass as it does Ctrl-C."""


def _interrupt_at_sigterm() -> None:
    """Raise `_Terminated` in the main thread; where that hangs in a call that is not Python's, end after a while."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # written to even while the main thread hangs
    main, raised = threading.main_thread(), threading.Event()

    def watch() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        while os.read(reading, 1)[0] != signal.SIGTERM:
            pass
        end = time.monotonic() + _GRACE_S
        while not raised.wait(_AGAIN_S) and time.monotonic() < end and main.ident is not None:
            signal.pthread_kill(main.ident, signal.SIGTERM)  # it may have begun to sleep just after the first
        time.sleep(max(0.0, end - time.monotonic()))
        os.write(_STDERR, b"stopped\n")
        os._exit(TERMINATED)

    def interrupt(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough: another would interrupt the tidying up
        raised.set()
        raise _Terminated

    signal.signal(signal.SIGTERM, interrupt)
    threading.Thread(target=watch, daemon=True, name="sigterm").start()
