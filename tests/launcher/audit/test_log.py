"""Lines of an audit log are whole, in their order, and kept, whoever else writes, moves files or fills the disk."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ArgumentError, ServerError
from launcher.audit.entries import Entries, Entry, encode, timestamp
from launcher.audit.log import AuditLog
from launcher.audit.writer import AuditWriter
from tests.launcher.processes import PATIENCE_S


def line(number: int) -> bytes:
    return encode(Entry(time=timestamp(number), event="refused", seed=number))


def seeds(folder: Path) -> list[int | None]:
    return [entry.seed for entry in Entries(str(folder))]


def test_a_second_process_has_a_file_of_its_own_until_the_first_has_ended(tmp_path: Path) -> None:
    first, second = AuditLog(str(tmp_path)), AuditLog(str(tmp_path))
    assert (Path(first.path).name, Path(second.path).name) == ("audit.jsonl", "audit-2.jsonl")
    first.append(line(1))
    second.append(line(2))
    assert stat.S_IMODE(os.stat(first.path).st_mode) == 0o600
    first.close()
    third = AuditLog(str(tmp_path))
    third.append(line(3))
    assert third.path == first.path
    assert sorted(map(str, seeds(tmp_path))) == ["1", "2", "3"]
    reports = AuditLog(str(tmp_path), "reports")
    assert Path(reports.path).name == "reports.jsonl"


def test_files_rotate_by_size_and_none_is_lost(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path), most_bytes=3 * len(line(1)), clock=lambda: 1e9)
    for number in range(1, 9):
        log.append(line(number))
    files = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    assert files == ["audit.20010909T014640Z-1.jsonl", "audit.20010909T014640Z.jsonl", "audit.jsonl"]
    assert sorted(filter(None, seeds(tmp_path))) == [*range(1, 9)]
    assert max(path.stat().st_size for path in tmp_path.glob("*.jsonl")) <= 3 * len(line(1))


def test_a_file_that_another_program_moved_is_begun_anew(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path))
    log.append(line(1))
    os.rename(log.path, tmp_path / "moved.jsonl")
    log.append(line(2))
    os.unlink(log.path)
    log.append(line(3))
    assert sorted(filter(None, seeds(tmp_path))) == [1, 3]


def test_files_that_logrotate_has_renamed_and_compressed_are_read(tmp_path: Path) -> None:
    for number, name in enumerate(("audit.jsonl", "audit.jsonl.1", "audit-2.jsonl-20261130"), 1):
        (tmp_path / name).write_bytes(line(number))
    for number, name in enumerate(("audit.jsonl.2.gz", "audit.20010909T014640Z.jsonl.gz"), 4):
        (tmp_path / name).write_bytes(gzip.compress(line(number)))
    assert sorted(filter(None, seeds(tmp_path))) == [1, 2, 3, 4, 5]
    (tmp_path / "audit.jsonl.3.gz").write_bytes(gzip.compress(line(6))[:-9])
    with pytest.raises(ArgumentError, match=r"audit\.jsonl\.3\.gz cannot be read: "):
        seeds(tmp_path)


def test_half_a_line_of_a_process_that_was_killed_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_bytes(line(1) + line(2)[:20])
    AuditLog(str(tmp_path)).append(line(3))
    entries = Entries(str(tmp_path))
    assert [entry.seed for entry in entries] == [1, 3]
    assert entries.unread == 1


def test_what_a_full_disk_took_of_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(str(tmp_path))
    log.append(line(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fills_up(10))
        with pytest.raises(OSError, match="No space"):
            log.append(line(2))
    log.append(line(3))
    assert (tmp_path / "audit.jsonl").read_bytes() == line(1) + line(3)


STEPS = st.lists(st.sampled_from(["write", "fill", "restart", "kill", "move"]), max_size=25)


@given(steps=STEPS, most=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_every_line_that_was_written_is_read_once_whatever_happens_between(steps: list[str], most: int) -> None:
    """Against a list of the lines that `append` has taken."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        written: list[int] = []

        def begin() -> AuditLog:
            return AuditLog(name, most_bytes=most * len(line(10)), clock=lambda: 1e9)

        log = begin()
        for number, step in enumerate(steps, 10):
            if step == "write":
                log.append(line(number))
                written.append(number)
            elif step == "fill":  # the disk, within a line
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(os, "write", fills_up(7))
                    with pytest.raises(OSError, match="No space"):
                        log.append(line(number))
            elif step == "move" and os.path.exists(log.path):
                os.rename(log.path, folder / f"moved-{number}.jsonl")
            elif step in ("restart", "kill"):
                if step == "kill":  # within a line
                    with open(log.path, "ab") as file:
                        file.write(line(number)[:9])
                log.close()
                log = begin()
        log.close()
        assert sorted(filter(None, seeds(folder))) == written


def fills_up(after: int) -> Callable[[int, bytes], int]:
    """A write of which the disk takes so many bytes."""
    write, left = os.write, [after]

    def full(descriptor: int, data: bytes) -> int:
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: left.pop()])

    return full


def test_a_folder_that_cannot_be_written_to_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match="cannot be written to"):
        AuditLog(str(tmp_path / "file"))
    with pytest.raises(ArgumentError, match="is no folder"):
        Entries(str(tmp_path / "none"))
    with pytest.raises(ArgumentError, match="has no audit log"):
        Entries(str(tmp_path))


def test_a_line_that_is_not_written_or_not_in_time_is_an_error_and_later_ones_are_written(tmp_path: Path) -> None:
    class Disk(AuditLog):
        problem: OSError | None = OSError(errno.ENOSPC, "No space left on device")
        hangs = threading.Event()

        def append(self, line: bytes) -> None:
            if self.problem is not None:
                raise self.problem
            self.hangs.wait()
            super().append(line)

    async def test() -> None:
        disk = Disk(str(tmp_path))
        writer = AuditWriter(disk, wait_s=0.05)
        with pytest.raises(ServerError, match="the audit log cannot be written") as caught:
            await writer.write(line(1))
        assert caught.value.retry_after_s
        disk.problem = None
        with pytest.raises(ServerError):  # it hangs
            await writer.write(line(2))
        other = asyncio.create_task(writer.write(line(3)))
        await asyncio.sleep(0)
        assert isinstance(other.exception(), ServerError)  # nobody else waits for it
        disk.hangs.set()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(ServerError):
                    await writer.write(line(4))
                    break
                await asyncio.sleep(0.01)
        assert {*seeds(tmp_path)} == {2, 4}
        writer.close()

    asyncio.run(test())
