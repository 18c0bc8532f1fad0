"""Where images are written."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from engine.errors import ArgumentError, Krea2Error
from launcher.requests.output_files import OutputName, check_paths, made_folders, slug, write_file
from tests.damage import FULL, full_disk
from tests.launcher.processes import PATIENCE_S, Marked


@pytest.mark.parametrize(
    ("name", "expected"), [("a.png", "png"), ("a.JPG", "jpeg"), ("a.jpeg", "jpeg"), ("a.b.webp", "webp"), ("a/", "png")]
)
def test_the_suffix_decides_the_format(name: str, expected: str) -> None:
    assert OutputName(name).format == expected


@pytest.mark.parametrize(
    "name", ["a", "a.gif", ".png", "", "a.png/b", "{", "}.png", "{}.png", "{0}.png", "{width}.png"]
)
def test_a_name_that_says_no_format_or_has_other_braces_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match="output must be a path"):
        OutputName(name)


@pytest.mark.parametrize("field", ["{seed.real}", "{seed[0]}", "{seed!r}", "{index:9999}", "{index:<5}", "{prompt:3}"])
def test_a_field_can_be_padded_with_noughts_and_nothing_else(field: str) -> None:
    with pytest.raises(ArgumentError, match="output must be a path in which braces hold index, seed or prompt"):
        OutputName(f"{field}.png")


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("x/a.b.png", None, "x/a.b.png"),
        ("x/a.b.png", 3, "x/a.b_3.png"),
        ("x/", None, "x/krea2.png"),
        ("x/", 3, "x/krea2_3.png"),
        ("{seed}/{index:03}-{prompt}.jpg", 3, "7/004-a-red-fox.jpg"),
        ("{{x}}.png", 3, "{x}_3.png"),
    ],
)
def test_images_are_named_by_their_fields_or_numbered_before_the_suffix(
    name: str, number: int | None, expected: str
) -> None:
    assert OutputName(name).of(index=4, seed=7, prompt="A red fox!", number=number) == Path(expected)


def test_a_folder_that_is_there_gets_a_file(tmp_path: Path) -> None:
    path = OutputName(str(tmp_path)).of(index=0, seed=0, prompt="", number=None)
    assert path == tmp_path / "krea2.png"


def test_a_prompt_in_a_name_is_short_and_has_letters_of_any_script_alone() -> None:
    assert slug("Ein Fuß/../im «Schnee»\n") == "ein-fuß-im-schnee"
    assert slug("雪の中の狐") == "雪の中の狐"
    assert len(slug("word " * 100)) <= 40
    assert slug("") == slug("…") == "no-prompt"


def test_paths_that_cannot_be_written_or_are_those_of_two_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    check_paths([tmp_path / "new" / "folders" / "a.png", tmp_path / "a.png", tmp_path / "file"])
    for path in (tmp_path / "folder.png", tmp_path / "file" / "a.png", tmp_path / "file" / "b" / "a.png"):
        with pytest.raises(ArgumentError, match="output must be a "):
            check_paths([path])
    with pytest.raises(ArgumentError, match=r"output must have \{index\} in it: two images would be"):
        check_paths([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "x" / ".." / "a.png"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.parametrize("folder", ["", "new"])
def test_names_that_are_too_long_are_refused(tmp_path: Path, folder: str) -> None:
    check_paths([tmp_path / folder / f"{'x' * 250}.png"])
    with pytest.raises(ArgumentError, match=r"output must be a path that can be written \(File name too long\)"):
        check_paths([tmp_path / folder / f"{'x' * 252}.png"])


@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png", "\0/a.png", f"new/{'x' * 256}/a.png"])
def test_names_that_nothing_can_have_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match=r"output must be a path that can be written \("):
        check_paths([tmp_path / name])
    long = tmp_path.joinpath(*["x" * 250] * 17)  # each of its folders could be made
    with pytest.raises(Krea2Error, match="cannot be made: File name too long"), made_folders([long / "a.png"]):
        pass
    assert not [*tmp_path.iterdir()]


def test_folders_that_others_make_and_remove_meanwhile_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def later(self: Path, **options: bool) -> None:
        with suppress(FileExistsError):
            mkdir(self)  # by somebody else
        mkdir(self, **options)  # type: ignore[arg-type]

    path = tmp_path / "a" / "b" / "x.png"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", later)
        with made_folders([path]):
            pass
    path.parent.rmdir()
    path.parent.parent.rmdir()
    write_file(path, b"new")
    assert path.read_bytes() == b"new"


def test_folders_are_made_and_those_that_stay_empty_are_removed(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "b" / "x.png", tmp_path / "c" / "d" / "y.png"]
    with made_folders(paths):
        paths[0].touch()
        assert paths[1].parent.is_dir()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "x.png"]
    with (
        pytest.raises(Krea2Error, match=r"b: cannot be made: Not a directory"),
        made_folders([paths[0] / "b" / "z.png"]),
    ):
        pass


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
    process = marked.start_krea2("generate", "a circle", "--seed", "0", "--device", "cpu", "--output", str(path))
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout, stderr) == (1, "", f"error: {path}: cannot be written: {FULL}\n")
    marked.expect_nothing_left()
    assert not [found for found in marked.folder.iterdir() if "x.png" in found.name or found.suffix == ".part"]
