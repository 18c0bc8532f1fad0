"""Files of keys that are read again while a server runs."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from engine.errors import ArgumentError
from launcher.frontend.admission import key_files
from launcher.frontend.admission.key_limits import KeyLimit, KeyLimits
from tests.launcher.processes import PATIENCE_S


def test_each_file_is_read_whatever_becomes_of_the_others_and_nobody_waits_for_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, object]] = []
    monkeypatch.setattr(
        key_files, "log_event", lambda event, **fields: told.append((event, fields.get("keys", fields.get("message"))))
    )
    monkeypatch.setattr(key_files, "log_exception", lambda error: told.append(("internal error", str(error))))
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    folder, file = str(tmp_path), str(tmp_path / "keys")
    Path(file).touch()

    def damaged() -> int:
        raise ArgumentError("line 3", parameter="api_key_file")

    def broken() -> int:
        raise ValueError("no number")

    def read_pipe() -> int:
        return len(Path(pipe).read_text())

    readers = {"not there": damaged, "a bug": broken, pipe: read_pipe, folder: lambda: 2, file: lambda: 3}
    asyncio.run(asyncio.wait_for(key_files.read_again(readers), PATIENCE_S))
    assert told == [
        ("keys not read again", "line 3"),
        ("internal error", "no number"),
        ("keys not read again", f"{pipe}: only a file can be read again, and this is a pipe or a device"),
        ("keys read again", 2),
        ("keys read again", 3),
    ]


@pytest.mark.parametrize("hanging", ["_check_kind", "read"])
def test_a_disk_that_hangs_keeps_neither_the_loop_nor_the_end_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    begun, ended, outlasted = threading.Event(), threading.Event(), threading.Event()

    def hang(*_: object) -> int:
        begun.set()
        if ended.wait(PATIENCE_S):
            outlasted.set()
        return 1

    async def test() -> None:
        reading = asyncio.create_task(key_files.read_again({str(tmp_path): hang if hanging == "read" else lambda: 1}))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading

    if hanging != "read":
        monkeypatch.setattr(key_files, hanging, hang)
    asyncio.run(test())
    ended.set()
    assert outlasted.wait(PATIENCE_S)


def test_limits_of_keys_that_there_are_not_are_warned_of_with_what_may_be_meant(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "limits.toml"

    def told(names: list[str]) -> list[dict[str, object]]:
        file.write_text("[default]\nconcurrency = 1\n" + "".join(f"[keys.{name}]\n" for name in names))
        caplog.clear()
        asyncio.run(key_files.warn_of_unknown(KeyLimits.read(file), {"alice", "bob"}))
        assert {(record.getMessage(), record.levelname) for record in caplog.records} <= {
            ("limits of no key", "WARNING")
        }
        return [record.fields for record in caplog.records]  # type: ignore[attr-defined]

    assert told(["alice", "bob", "anonymous"]) == []
    assert told(["alise", "bob", "zoe"]) == [{"key": "alise", "near": "alice"}, {"key": "zoe"}]
    assert told([f"key-{number}" for number in range(100)])[9:] == [{"key": "key-9"}, {"more": 90}]
    assert told([]) == []
    asyncio.run(key_files.warn_of_unknown(None, ()))


def test_a_comparison_that_cannot_be_made_does_not_end_what_waits_for_the_next_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_many(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", too_many)
    asyncio.run(key_files.warn_of_unknown(KeyLimits(KeyLimit(), {}), ()))
    assert "can't start new thread" in capsys.readouterr().err
