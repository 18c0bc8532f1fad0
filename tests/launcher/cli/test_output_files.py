"""Where images are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ArgumentError
from launcher.cli.generate import numbered_paths, output_format, write_file


@pytest.mark.parametrize(
    ("name", "expected"), [("a.png", "png"), ("a.JPG", "jpeg"), ("a.jpeg", "jpeg"), ("a.b.webp", "webp")]
)
def test_the_suffix_decides_the_format(tmp_path: Path, name: str, expected: str) -> None:
    assert output_format(tmp_path / name) == expected


@pytest.mark.parametrize("name", ["a", "a.gif", ".png", "a.png/b", "missing/a.png", "folder.png"])
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ArgumentError, match="output must be"):
        output_format(tmp_path / name)


def test_several_images_are_numbered_before_the_suffix() -> None:
    assert numbered_paths(Path("x/a.b.png"), 1) == [Path("x/a.b.png")]
    assert numbered_paths(Path("x/a.b.png"), 2) == [Path("x/a.b_0.png"), Path("x/a.b_1.png")]


def test_names_that_are_too_long_with_their_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 250}.png"
    assert numbered_paths(path, 1) == [path]
    write_file(path, b"fits")
    with pytest.raises(ArgumentError, match=r"output must be a path that can be written \(File name too long\)"):
        numbered_paths(path, 2)


def test_a_file_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_file(tmp_path / "folder", b"x")
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "folder"]
