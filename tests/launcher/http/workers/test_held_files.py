"""Files that are held for a while, where every process finds them."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest

from engine.errors import Krea2Error
from launcher.http.workers.held_files import HELD_S, HeldFiles, shared_files
from tests.launcher.processes import PATIENCE_S


def test_a_file_is_there_for_every_process_until_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = time.monotonic()
    files, others = HeldFiles(tmp_path), HeldFiles(tmp_path)
    first, second = files.add(b"first", "png"), others.add(b"second", "webp")
    after = time.monotonic()
    assert first != second
    assert (first[-4:], second[-5:]) == (".png", ".webp")
    assert len(first) > 32
    for now, held in ((before + 3599.9, (b"first", b"second")), (after + 3600.1, (None, None))):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        for either in (files, others, HeldFiles(tmp_path)):
            assert (either.get(first), either.get(second), either.get("third")) == (*held, None)
    files.remove_old()
    assert not os.listdir(tmp_path / "images")


def test_setting_the_clock_loses_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = HeldFiles(tmp_path)
    monkeypatch.setattr("launcher.http.workers.held_files.HELD_FILES", 1)
    really, names = (time.time_ns(), time.time()), []
    for hours in (0, -2, 2):
        monkeypatch.setattr(time, "time_ns", lambda hours=hours: really[0] + hours * 3600 * 10**9)
        monkeypatch.setattr(time, "time", lambda hours=hours: really[1] + hours * 3600)
        names.append(files.add(b"1234", "png"))
        assert [files.get(name) for name in names] == [None] * (len(names) - 1) + [b"1234"]
    monkeypatch.setattr(time, "time", lambda: really[1] + 4 * 3600)
    assert files.get(names[-1]) == b"1234"


def test_what_a_process_has_held_another_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        sweeping = asyncio.create_task(HeldFiles(tmp_path).sweep())
        HeldFiles(tmp_path).add(b"first", "png")
        monkeypatch.setattr("launcher.http.workers.held_files.HELD_S", 0.0)
        async with asyncio.timeout(PATIENCE_S):
            while os.listdir(tmp_path / "images"):
                await asyncio.sleep(0.01)
        sweeping.cancel()

    monkeypatch.setattr("launcher.http.workers.held_files.SWEEP_S", 0.01)
    asyncio.run(test())


def test_beyond_the_bounds_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = HeldFiles(tmp_path)
    monkeypatch.setattr("launcher.http.workers.held_files.HELD_BYTES", 10)
    names = [files.add(b"1234", "png") for _ in range(3)]
    assert [files.get(name) for name in names] == [None, b"1234", b"1234"]
    large = files.add(b"12345678901", "png")
    assert [files.get(name) for name in (*names, large)] == [None, None, None, b"12345678901"]
    monkeypatch.setattr("launcher.http.workers.held_files.HELD_FILES", 2)
    names = [large, *(files.add(b"", "jpeg") for _ in range(2))]
    assert [files.get(name) for name in names] == [None, b"", b""]


def test_only_this_user_may_read_it_and_nothing_else_is_read(tmp_path: Path) -> None:
    files = HeldFiles(tmp_path)
    name = files.add(b"mine", "png")
    assert (tmp_path / "images").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "images" / name).stat().st_mode & 0o777 == 0o600
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "images" / f".{name}").write_bytes(b"half")
    for other in ("../secret.png", f"..\\{name}", f".{name}", "", name + "\n", "é" * 32 + ".png"):
        assert files.get(other) is None


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = HeldFiles(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "utime", full)
    with pytest.raises(Krea2Error, match=rf"cannot be kept as {tmp_path}/images/\S+\.png: No space left on device"):
        files.add(b"12", "png")
    assert not os.listdir(tmp_path / "images")


def test_machines_that_share_a_folder_share_the_time_of_day_and_not_that_since_they_were_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = shared_files(str(tmp_path)).add(b"first", "png")
    monkeypatch.setattr(time, "monotonic", lambda: 10 * HELD_S)  # of another machine
    assert shared_files(str(tmp_path)).get(name) == b"first"
    really = time.time()
    monkeypatch.setattr("time.time", lambda: really + 2 * HELD_S)
    assert shared_files(str(tmp_path)).get(name) is None
