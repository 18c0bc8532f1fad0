"""Conversions that cannot be written or are not finished: nothing is left of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert import convert
from engine.checkpoint.convert.convert import LAYOUTS, WEIGHTS
from engine.config.engine_config import EngineConfig
from engine.errors import CheckpointError
from tests.damage import FULL, full_disk


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["x" * 251, "x" * 300, "file/x"])
def test_paths_that_cannot_be_written_are_named(turbo: Path, tmp_path: Path, layout: str, name: str) -> None:
    (tmp_path / "file").touch()
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo)))
    with pytest.raises(CheckpointError, match=r"cannot be written: (File name too long|Not a directory)"):
        convert.convert(checkpoint, tmp_path / name, layout=layout, weights=WEIGHTS[layout][0])
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_is_said_and_nothing_left_on_it(turbo: Path, tmp_path: Path, layout: str) -> None:
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo)))
    message = rf"cannot be written: ({FULL}|\d+ requested and \d+ written)"
    with full_disk(room=20_000), pytest.raises(CheckpointError, match=message):
        convert.convert(checkpoint, tmp_path / "out", layout=layout, weights=WEIGHTS[layout][0])
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_what_was_not_finished(turbo: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo)))
    for layout in LAYOUTS:
        with pytest.raises(Stop):
            convert.convert(checkpoint, tmp_path / "out", layout=layout, weights=WEIGHTS[layout][0], report=stop)
        assert not list(tmp_path.iterdir()), layout
