"""Results as files and in notebooks: pictures keep their prompt and seed wherever they are saved."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PIL

from engine.errors import ArgumentError, Krea2Error
from launcher.client.results import ImageFile, PreviewFile, Result
from launcher.disclosure.xmp import DRAWN, packet
from launcher.requests.image_metadata import read_made, read_xmp, save_options

MADE = {"prompt": "a 'red'\ncircle 🔴", "seed": 7, "steps": 8, "loras": [{"name": "a", "strength": 1.0}]}
SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}


def file(image_format: str = "png", made: dict[str, Any] | None = MADE, xmp: bytes | None = None) -> bytes:
    data = io.BytesIO()
    PIL.new("RGB", (16, 32), (255, 0, 0)).save(data, image_format, **save_options(image_format, made, xmp=xmp))
    return data.getvalue()


def result(*files: bytes, image_format: str = "png", warnings: tuple[str, ...] = ()) -> Result:
    seeds, timings = [7 + index for index in range(len(files))], {"total": 1.5}
    return Result("id", 1, [*files], seeds, 16, 32, image_format, timings, warnings, "a red circle")


def made(path: Path) -> dict[str, Any] | None:
    with PIL.open(path) as image:
        assert image.format == {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".jpeg": "JPEG"}[path.suffix.lower()]
        assert image.size == (16, 32)
        return read_made(image)


@pytest.mark.parametrize("theirs", SUFFIXES.values())
@pytest.mark.parametrize("own", SUFFIXES)
def test_prompt_and_seed_are_kept_in_every_format(own: str, theirs: str, tmp_path: Path) -> None:
    its = result(file(own), image_format=own)
    assert its.save(tmp_path / "new" / "folder" / f"a.{theirs}") == [tmp_path / "new" / "folder" / f"a.{theirs}"]
    its.images[0].save(tmp_path / "other" / f"b.{theirs}")
    assert made(tmp_path / "new" / "folder" / f"a.{theirs}") == MADE
    assert made(tmp_path / "other" / f"b.{theirs}") == MADE
    if SUFFIXES[own] == theirs:
        assert (tmp_path / "new" / "folder" / f"a.{theirs}").read_bytes() == its.files[0]


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_a_file_without_metadata_is_given_none(suffix: str, tmp_path: Path) -> None:
    its = result(file(made=None))
    its.save(tmp_path / f"a.{suffix}")
    its.image.save(tmp_path / f"b.{suffix}")
    assert made(tmp_path / f"a.{suffix}") is made(tmp_path / f"b.{suffix}") is None


@pytest.mark.parametrize("theirs", SUFFIXES.values())
@pytest.mark.parametrize("own", SUFFIXES)
def test_what_a_file_says_of_its_source_is_kept_in_every_format(own: str, theirs: str, tmp_path: Path) -> None:
    xmp = packet(DRAWN)
    its = result(file(own, made=None, xmp=xmp), image_format=own)
    its.save(tmp_path / f"a.{theirs}")
    its.image.save(tmp_path / f"b.{theirs}")
    for name in "ab":
        with PIL.open(tmp_path / f"{name}.{theirs}") as image:
            assert read_xmp(image) == xmp


def test_several_images_are_numbered_and_one_event_saves_its_own(tmp_path: Path) -> None:
    files = [file(made=MADE | {"seed": seed}) for seed in (7, 8)]
    paths = result(*files).save(str(tmp_path / "x.PNG"))
    assert paths == [tmp_path / "x_0.PNG", tmp_path / "x_1.PNG"]
    assert [path.read_bytes() for path in paths] == files
    assert ImageFile("id", 1, 1, 8, 16, 32, "png", files[1]).save(tmp_path / "one.webp") == tmp_path / "one.webp"
    assert made(tmp_path / "one.webp") == MADE | {"seed": 8}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.webp", "x_0.PNG", "x_1.PNG"]


def test_images_that_are_saved_as_they_come_have_their_own_indices_in_their_names(tmp_path: Path) -> None:
    files = [file(made=MADE | {"seed": seed}) for seed in (7, 8)]
    paths = [
        ImageFile("id", 1, index, 7 + index, 16, 32, "png", data).save(tmp_path / "{index:02}.png")
        for index, data in enumerate(files)
    ]
    assert [path.name for path in paths] == ["00.png", "01.png"]
    assert [path.read_bytes() for path in paths] == files


def test_names_are_filled_in_and_a_folder_is_enough(tmp_path: Path) -> None:
    its = result(file(), file())
    names = [
        path.relative_to(tmp_path).as_posix() for path in its.save(tmp_path / "{prompt}" / "{seed}-{index:02}.png")
    ]
    assert names == ["a-red-circle/7-00.png", "a-red-circle/8-01.png"]
    assert its.save(f"{tmp_path}/images/") == [tmp_path / "images" / f"krea2_{index}.png" for index in range(2)]
    with pytest.raises(ArgumentError, match=r"^path must have \{index\} in it: two images would be "):
        its.save(tmp_path / "{prompt}.png")


def test_what_pillow_can_do_it_still_does(tmp_path: Path) -> None:
    image = result(file()).image
    image.save(tmp_path / "x.bmp")
    image.save(stream := io.BytesIO(), "webp", quality=1)
    image.save(tmp_path / "x", format="png", compress_level=9)
    assert PIL.open(tmp_path / "x.bmp").size == image.resize((32, 64)).resize((16, 32)).size
    assert json.loads(PIL.open(stream).getexif()[0x010E]) == MADE
    assert read_made(PIL.open(tmp_path / "x")) == MADE


@pytest.mark.parametrize("image_format", SUFFIXES)
def test_pictures_go_to_other_processes_and_keep_what_they_are(image_format: str, tmp_path: Path) -> None:
    its = result(file(image_format), image_format=image_format)
    assert its.image.getpixel((0, 0)) == its.images[0].getpixel((0, 0))  # the result has them now
    for other in (
        pickle.loads(pickle.dumps(its)).image,
        pickle.loads(pickle.dumps(its.image)),
        copy.deepcopy(its.image),
    ):
        assert other.tobytes() == its.image.tobytes()
        other.save(tmp_path / "new" / "x.png")
        assert made(tmp_path / "new" / "x.png") == MADE


@pytest.mark.parametrize("path", ["x", "x.gif", "", 3])
def test_a_path_of_no_format_of_ours_is_refused(path: object) -> None:
    with pytest.raises(ArgumentError, match=r"^path must be a path(; result\.files are| that ends in \.png, \.jpg, )"):
        result(file()).save(path)  # type: ignore[arg-type]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "x.png"
    with pytest.raises(ArgumentError, match=r"^path must be .*/file/x\.png'$"):
        result(file()).save(path)
    with pytest.raises(Krea2Error, match=rf"^{tmp_path}/file/a: cannot be made: Not a directory$"):
        result(file()).image.save(tmp_path / "file" / "a" / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_result_shows_its_images_side_by_side() -> None:
    shown = result(file(), file("webp"), warnings=("<none> of these",))._repr_html_()
    assert shown.count("<img ") == 2
    assert shown.index("seed 7") < shown.index("seed 8") < shown.index("warning: &lt;none&gt; of these")
    assert "seed 7" in ImageFile("id", 1, 0, 7, 16, 32, "png", file())._repr_html_()
    preview = PreviewFile("id", 1, 2, 3, 8, file("jpeg"))
    assert "data:image/jpeg;base64," in preview._repr_html_()
    assert "step 3 of 8" in preview._repr_html_()
    assert {name: preview.image.info[name] for name in ("index", "step", "steps")} == {
        "index": 2,
        "step": 3,
        "steps": 8,
    }


def test_a_result_says_what_it_is_in_a_line() -> None:
    assert repr(result(file())) == "<Result: 1 image of 16 × 32, png, seed 7, 1.50 s>"
    several = repr(result(file(), file(), warnings=("a " * 100,)))
    assert several.startswith("<Result: 2 images of 16 × 32, png, seeds 7 to 8, 1.50 s; warning: a a ")
    assert several.endswith("a …>")
