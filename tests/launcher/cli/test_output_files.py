"""Where images are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ArgumentError, Krea2Error
from launcher.cli.generate import numbered_paths, output_format, write_file
from tests.damage import FULL, full_disk
from tests.launcher.processes import PATIENCE_S, Marked


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
    with pytest.raises(Krea2Error, match="folder: cannot be written: Is a directory"):
        write_file(tmp_path / "folder", b"x")
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "folder"]


@pytest.mark.parametrize("room", [0, 100])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path, room: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with full_disk(room), pytest.raises(Krea2Error) as error:
        write_file(path, bytes(1000))
    assert error.value.message == f"{path}: cannot be written: {FULL}"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


SMALL_FILES = """
import sys
if "generate" in sys.orig_argv:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
"""


def test_a_picture_that_does_not_fit_on_the_disk_ends_generate_with_its_name(marked: Marked) -> None:
    marked.use_hollow_ranks()
    marked.run_first(SMALL_FILES)
    marked.environment["PYTHONDONTWRITEBYTECODE"] = "1"  # or Python keeps the first 64 bytes of what it compiles
    path = marked.folder / "x.png"
    process = marked.start_krea2("generate", "x", "--seed", "0", "--device", "cpu", "--output", str(path))
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout, stderr) == (1, "", f"error: {path}: cannot be written: {FULL}\n")
    marked.expect_nothing_left()
    assert not [found for found in marked.folder.iterdir() if "x.png" in found.name or found.suffix == ".part"]
