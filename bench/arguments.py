"""What benchmarks have in common on the command line: types of options, and how a benchmark ends."""

from __future__ import annotations

import argparse
import errno
import faulthandler
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from bench.lost import LOST
from bench.writing import all_written
from engine.config import MOST_RANKS
from engine.modes import Degrees

INTERRUPTED = 130  # the exit status after Ctrl-C
SIDE_MULTIPLE = 16  # pixels of a token's side
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


def end_with(main: Callable[[], int]) -> NoReturn:
    """End the process with what a benchmark's `main` returns, or with 1 for 0 if a result could not be written. Ctrl-C
    ends it without a traceback. A crash, and SIGTERM too, by which a benchmark that is not done in time is stopped,
    leave on stderr where every thread was."""
    if not faulthandler.is_enabled():
        faulthandler.enable(_STDERR)
    faulthandler.register(signal.SIGTERM, _STDERR, all_threads=True, chain=True)
    try:
        status = main()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = INTERRUPTED
    finally:
        faulthandler.unregister(signal.SIGTERM)
    if status == LOST:  # nothing that uses the GPU at exit would come to an end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status or int(not all_written()))
