"""The process that reads pictures dies, hangs, is left alone or told to end: who waits for it hears why, and the next
request has another."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, QueueFullError, ServerError
from launcher.awake import AwakeLoop
from launcher.messages.limits import Limits
from launcher.pictures import reading
from launcher.pictures.prepared import PreparedPicture
from launcher.pictures.reading import PictureReader
from tests.launcher.pictures.files import request, saved
from tests.launcher.processes import PATIENCE_S

# The process, but what it does over a file is what the file says, and its time is short.
SCRIPT = """
import os, signal, sys, time
from launcher.pictures import process

class PictureFile(process.PictureFile):
    def __init__(self, name, data, most):
        if data == b"spin":
            sum(iter(lambda: 1, 0))
        elif data == b"die":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif data == b"killed" or (data == b"killed once" and not os.path.exists(os.environ["BEGUN"])):
            open(os.environ["BEGUN"], "a").close()
            os.kill(os.getpid(), signal.SIGKILL)
        elif data == b"hang":
            open(os.environ["BEGUN"], "a").close()
            time.sleep(1000)
        elif data == b"eat":
            bytes(2**31)
        elif data == b"bug":
            raise ValueError("a bug")
        super().__init__(name, data, most)

process.PictureFile = PictureFile
process.READ_S = 0.2
process.run_pictures()
"""
GOOD = saved(Image.new("RGB", (96, 96), "red"))


class Reader(PictureReader):
    """A reader of the demo's pictures."""

    def __init__(self, demo: ModelConfig) -> None:
        super().__init__()
        self.demo = demo

    def reads(self, limits: Limits | None = None, **files: bytes) -> Coroutine[Any, Any, PreparedPicture]:
        return self.read(*request(**files), self.demo, limits or Limits())

    async def reads_again(self) -> None:
        assert (await self.reads(image=GOOD)).answer_size == (96, 96)


def run(test: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=AwakeLoop) as runner:
        runner.run(test)


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have readers start the process above. Returns the file that says that it hangs."""
    monkeypatch.setattr("launcher.processes.python_command", lambda *_: [sys.executable, "-c", SCRIPT])
    monkeypatch.setenv("BEGUN", str(tmp_path / "begun"))
    return tmp_path / "begun"


def test_a_file_that_kills_it_or_takes_too_long_is_an_error_about_it_and_the_next_is_read(
    demo: ModelConfig, begun: Path
) -> None:
    async def test() -> None:
        reader = Reader(demo)
        with pytest.raises(ArgumentError, match=r"^image took longer than 10 s to read$") as raised:
            await reader.reads(image=b"spin")
        assert raised.value.parameter == "image"
        await reader.reads_again()
        with pytest.raises(ArgumentError, match=r"^mask could not be read: the process for it was killed by SIGSEGV"):
            await reader.reads(image=GOOD, mask=b"die")
        with pytest.raises(ArgumentError, match=r"^image could not be read: .*it takes more memory than there is"):
            await reader.reads(image=b"eat")
        await reader.reads_again()
        reader.close()

    run(test())


def test_one_that_ends_over_no_fault_of_the_file_is_replaced_and_is_no_error_about_it(
    demo: ModelConfig, begun: Path
) -> None:
    async def test() -> None:
        reader = Reader(demo)
        for file, why in ((b"killed", "was killed by SIGKILL"), (b"bug", "exit code 1: ValueError: a bug")):
            with pytest.raises(ServerError, match=rf"^pictures cannot be read: the process for them .*{why}"):
                await reader.reads(image=file)
        begun.unlink()
        with pytest.raises(ArgumentError, match=r"^image must be"):  # by the second process, which reads it
            await reader.reads(image=b"killed once")
        await reader.reads_again()
        reader.close()

    run(test())


def test_one_that_ends_before_it_begins_costs_nobody_a_request_unless_the_next_does_so_too(
    demo: ModelConfig, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, kills = reading._Process._send, [True, False, True, True]

    async def send_to_a_dead_one(process: Any, *work: Any) -> None:
        if kills.pop(0):
            process.kill()
            process.child.wait(PATIENCE_S)
        await send(process, *work)

    monkeypatch.setattr(reading._Process, "_send", send_to_a_dead_one)

    async def test() -> None:
        reader = Reader(demo)
        await reader.reads_again()
        with pytest.raises(ServerError, match=r"^pictures cannot be read: the process for them was killed by SIGKILL"):
            await reader.reads_again()
        assert kills == []
        reader.close()

    run(test())


def test_who_gives_up_before_it_has_come_up_leaves_it_to_the_next(demo: ModelConfig) -> None:
    async def test() -> None:
        reader = Reader(demo)
        call = asyncio.create_task(reader.reads(image=GOOD))
        while reader._process is None or reader._process._up is None:
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        process = reader._process
        await reader.reads_again()
        assert reader._process is process

        process.kill()
        assert process.child.wait(PATIENCE_S)
        call = asyncio.create_task(reader.reads(image=GOOD))
        while reader._process is process or reader._process is None or reader._process._up is None:
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        reader.close()

    run(test())


def test_who_stops_waiting_stops_the_reading_and_who_came_first_is_next(
    demo: ModelConfig, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        reader = Reader(demo)
        order: list[int] = []

        async def read_good(number: int) -> None:
            await reader.reads(image=GOOD)
            order.append(number)

        hanging = asyncio.create_task(reader.reads(image=b"hang"))
        async with asyncio.timeout(PATIENCE_S):
            while not begun.exists():
                await asyncio.sleep(0.01)
        others = [asyncio.create_task(read_good(number)) for number in range(3)]
        await asyncio.sleep(0)
        others[1].cancel()
        with pytest.raises(QueueFullError):
            await reader.reads(Limits(max_queue=4), image=GOOD)
        hanging.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert (hanging.cancelled(), order) == (True, [0, 2])

        monkeypatch.setattr(reading, "_PATIENCE_S", 0.01)
        with pytest.raises(ServerError, match=r"^pictures cannot be read: .* did not go on for 0.01 s$"):
            await reader.reads(image=b"hang")
        reader.close()

    run(test())


def test_closing_ends_what_is_being_read_and_nothing_is_read_afterwards(demo: ModelConfig, begun: Path) -> None:
    async def test() -> None:
        reader = Reader(demo)
        hanging = asyncio.create_task(reader.reads(image=b"hang"))
        async with asyncio.timeout(PATIENCE_S):
            while not begun.exists():
                await asyncio.sleep(0.01)
        process = reader._process
        assert process is not None
        reader.close()
        assert process.child.wait(PATIENCE_S)
        for late in (hanging, reader.reads(image=GOOD)):
            with pytest.raises(ServerError, match="shutting down"):
                await late

    run(test())


def test_one_that_ended_is_replaced_its_memory_is_bounded_and_it_ends_with_its_parent(demo: ModelConfig) -> None:
    async def test() -> None:
        reader = Reader(demo)
        await reader.reads_again()
        process = reader._process
        assert process is not None
        pid = process.child._process.pid
        if sys.platform == "linux":
            limits = dict(line.rsplit(maxsplit=3)[:2] for line in Path(f"/proc/{pid}/limits").read_text().splitlines())
            assert (limits["Max address space"], limits["Max core file size"]) == ("1000000000", "0")
        os.kill(pid, signal.SIGKILL)
        assert process.child.wait(PATIENCE_S)
        await reader.reads_again()
        other = reader._process
        assert other is not None
        assert other is not process
        other.child.ask_to_stop()  # which is what it hears when its parent is gone
        assert other.child.wait(PATIENCE_S)
        reader.close()

    run(test())


def test_one_that_cannot_be_started_is_no_fault_of_the_picture(
    demo: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        reader = Reader(demo)
        for command, why in (([sys.executable, "-c", "1 / 0"], "ZeroDivisionError"), (["/nowhere"], "No such file")):
            monkeypatch.setattr("launcher.processes.python_command", lambda *_, command=command: command)
            with pytest.raises(ServerError, match=f"^pictures cannot be read: .*{why}"):
                await reader.reads(image=GOOD)

    run(test())
