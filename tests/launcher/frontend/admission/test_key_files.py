"""Files of keys that are read again while a server runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from engine.errors import ArgumentError
from launcher.frontend.admission import key_files
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
