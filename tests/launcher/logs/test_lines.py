"""Lines get to stderr whole and in order, and nobody waits for whoever reads it."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from launcher import lines
from launcher.lines import LONGEST, MAX_BYTES, MAX_LINES, LineStream, LineWriter
from tests.launcher.processes import PATIENCE_S, wait_until


class Pipe(NamedTuple):
    """A pipe with a writer at one end."""

    reader: io.FileIO
    fd: int
    writer: LineWriter

    def read(self, count: int) -> list[str]:
        """The next lines."""
        data = b""
        while data.count(b"\n") < count:
            data += self.reader.read(1 << 16)
        return data.decode().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    def tell(count: int) -> None:
        writer.put(f"{count} dropped")

    reader, fd = os.pipe()
    writer = LineWriter(fd, on_dropped=tell)
    with io.FileIO(reader) as file:  # whose end also ends a write that waits; the other end is its thread's
        yield Pipe(file, fd, writer)


def test_nobody_waits_for_a_reader_and_what_is_dropped_is_told_where_it_is_missing(pipe: Pipe) -> None:
    line = "x" * 2000
    count = 3 * MAX_BYTES // len(line)
    for number in range(count):
        pipe.writer.put(f"{number} {line}")
    assert 0 < pipe.writer.dropped < count
    dropped = pipe.writer.dropped
    kept = pipe.read(count - dropped + 1)
    assert kept[-1] == f"{dropped} dropped"
    assert [int(each.split()[0]) for each in kept[:-1]] == list(range(count - dropped))
    pipe.writer.put("after")
    assert pipe.read(1) == ["after"]
    assert pipe.writer.dropped == dropped


def test_short_lines_are_bounded_in_number(pipe: Pipe) -> None:
    os.set_blocking(pipe.fd, False)
    with suppress(BlockingIOError):
        while os.write(pipe.fd, b"-" * 4096):
            pass
    os.set_blocking(pipe.fd, True)
    for _ in range(MAX_LINES + 100):
        pipe.writer.put("")
    assert pipe.writer.dropped == 100


def test_a_write_that_would_wait_is_tried_again(pipe: Pipe) -> None:
    """Whoever started us may have made the file we share one that waits for nobody."""
    os.set_blocking(pipe.fd, False)
    sent = [f"{number} {'x' * 3000}" for number in range(100)]
    for line in sent:
        pipe.writer.put(line)
    assert pipe.read(len(sent)) == sent
    assert not os.get_blocking(pipe.fd)


def test_what_a_file_takes_in_parts_is_whole(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(lines.os, "write", lambda fd, data: write(fd, bytes(data[:7] if fd == pipe.fd else data)))
    for number in range(20):
        pipe.writer.put(f"a line, number {number}")
    assert pipe.read(20) == [f"a line, number {number}" for number in range(20)]


def test_a_file_that_takes_nothing_more_costs_lines_and_no_more(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a full disk does, here in the middle of a line; what comes later begins a line of its own."""
    write, full = os.write, threading.Event()

    def write_until_full(fd: int, data: memoryview) -> int:
        if fd != pipe.fd:  # another test's thread may not have ended
            return write(fd, data)
        if full.is_set():
            raise OSError(28, "No space left on device")
        full.set()
        return write(fd, bytes(data[:4]))

    monkeypatch.setattr(lines.os, "write", write_until_full)
    pipe.writer.put("the first")
    wait_until(lambda: pipe.writer.dropped == 1, "the loss of the first line")
    pipe.writer.put("the second")
    wait_until(lambda: pipe.writer.dropped == 2, "the loss of the second line")
    monkeypatch.setattr(lines.os, "write", write)
    pipe.writer.put("the third")
    assert pipe.read(3) == ["the ", "the third", "2 dropped"]


def test_a_reader_that_is_gone_ends_nothing(pipe: Pipe) -> None:
    pipe.reader.close()
    for _ in range(10):
        pipe.writer.put("x")
    wait_until(lambda: pipe.writer.dropped == 10, "the loss of all lines")
    pipe.writer.flush(PATIENCE_S)


def test_flushing_ends_with_the_last_line_or_the_patience(pipe: Pipe) -> None:
    for _ in range(100):
        pipe.writer.put("x" * 3000)
    pipe.writer.flush(0.05)
    read = threading.Thread(target=pipe.read, args=(100,))
    read.start()
    pipe.writer.flush(PATIENCE_S)
    read.join(PATIENCE_S)
    assert not read.is_alive()


def test_a_long_line_is_cut(pipe: Pipe) -> None:
    pipe.writer.put("x" * (LONGEST + 1))
    pipe.writer.put("ä\udcff")
    assert pipe.read(2) == ["x" * (LONGEST - 1) + "…", "ä\\udcff"]


def test_lines_of_several_threads_stay_whole() -> None:
    taken: list[str] = []
    stream = LineStream(io.StringIO(), taken.append)

    def say(name: str) -> None:
        for _ in range(200):
            for part in (name, name * 3, "\n"):
                stream.write(part)

    threads = [threading.Thread(target=say, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(name * 4 for name in "abcd" for _ in range(200))


def test_a_line_that_never_ends_is_handed_on_in_parts() -> None:
    taken: list[str] = []
    stream = LineStream(io.StringIO(), taken.append)
    for _ in range(100):
        stream.write("x" * 1000)
    assert sum(map(len, taken)) > 100_000 - 2 * LONGEST
    assert max(map(len, taken)) < LONGEST + 1001


def test_the_stream_passes_for_the_one_it_stands_for(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w", encoding="latin-1") as file:
        stream = LineStream(file, print)
        assert (stream.fileno(), stream.isatty(), stream.encoding) == (file.fileno(), False, "latin-1")
        assert stream.writable()
        stream.flush()
