"""What commands read of stdin: all that comes, and no signal is missed meanwhile."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from launcher.cli.pictures import read_stdin


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[BinaryIO]:
    """The other end of the pipe that is stdin."""
    reader, fd = os.pipe()
    with os.fdopen(reader) as stdin, os.fdopen(fd, "wb", buffering=0) as file:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield file


class Interrupted(BaseException):
    pass


def test_all_that_comes_is_read_but_no_more_than_is_wanted(writer: BinaryIO) -> None:
    def write_the_rest() -> None:
        writer.write(b"an owl\n")
        writer.close()

    writer.write(b"a fox\n")
    assert read_stdin(3) == b"a fox\n"  # what has come is over the limit, which is all that one wants to know
    writer.write(b"a fox\n")
    threading.Timer(0.1, write_the_rest).start()
    assert read_stdin() == b"a fox\nan owl\n"


def test_a_signal_that_interrupts_no_read_is_heard_of_nevertheless(
    writer: BinaryIO, request: pytest.FixtureRequest
) -> None:
    """As one that comes just before the read: Python knows of it, but the thread that would handle it reads already."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    def read() -> None:
        threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)).start()
        read_stdin()

    request.addfinalizer(lambda: signal.signal(signal.SIGUSR1, before))
    before = signal.signal(signal.SIGUSR1, interrupt)
    with pytest.raises(Interrupted):
        read()
