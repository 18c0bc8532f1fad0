"""Pictures that a program gives: paths, bytes, open files, Pillow's images, and arrays."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PIL

from engine.errors import ArgumentError
from launcher.client import uploads
from launcher.client.client import Client
from launcher.client.parameters import make_request
from launcher.client.uploads import read_pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
ALPHA = np.dstack([PIXELS, np.arange(48, dtype=np.uint8).reshape(6, 8)])
MASK = PIXELS[:, :, 0] > 128
IMAGE = PIL.fromarray(PIXELS)


def pixels_of(value: object) -> np.ndarray[Any, Any]:
    return np.asarray(PIL.open(io.BytesIO(read_pictures({"image": value})["image"])))


@pytest.mark.parametrize(
    ("value", "pixels"),
    [
        (IMAGE, PIXELS),
        ([IMAGE], PIXELS),
        (PIXELS, PIXELS),
        (PIXELS[None], PIXELS),
        (PIXELS / 255, PIXELS),
        (PIXELS.astype(np.float32) / 255, PIXELS),
        (torch.from_numpy(PIXELS), PIXELS),
        (torch.from_numpy(PIXELS).float() / 255, PIXELS),
        (ALPHA, ALPHA),
        (PIL.fromarray(ALPHA), ALPHA),
        (MASK, MASK * 255),
        (MASK[:, :, None], MASK * 255),
        (MASK.astype(float), MASK * 255),
        (torch.from_numpy(MASK), MASK * 255),
        (PIXELS[:, ::-1], PIXELS[:, ::-1]),
        (PIL.fromarray(PIXELS[:, :, 0].astype(np.int32)), np.dstack([PIXELS[:, :, 0]] * 3)),
        (PIL.fromarray(PIXELS[:, :, 0].astype(np.float32)), np.dstack([PIXELS[:, :, 0]] * 3)),
    ],
)
def test_images_and_arrays_become_files_of_the_same_pixels(value: object, pixels: np.ndarray[Any, Any]) -> None:
    assert (pixels_of(value) == pixels).all()


@pytest.mark.parametrize("mode", ["RGBa", "PA", "La"])
def test_images_of_pillow_s_rarer_modes_stay_transparent(mode: str) -> None:
    image = PIL.new("RGBA", (8, 6), (255, 0, 0, 0))
    image.paste((9, 9, 9, 255), (0, 0, 4, 6))
    sent = PIL.fromarray(pixels_of((image.convert("LA") if mode == "La" else image).convert(mode))).convert("RGBA")
    assert (np.asarray(sent)[:, :, 3] == np.asarray(image)[:, :, 3]).all()
    assert sent.getpixel((0, 0)) == (9, 9, 9, 255)


def test_files_are_sent_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_bytes(b"bytes")
    for value in (file, str(file), b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), io.BytesIO(b"bytes")):
        assert read_pictures({"image": value, "mask": None}) == {"image": b"bytes"}


def test_one_of_pillow_s_images_is_sent_upright_with_its_profile_and_transparency_and_without_exif(
    tmp_path: Path,
) -> None:
    exif = PIL.Exif()
    exif[0x0112], exif[0x010E] = 6, "where it was taken"
    IMAGE.save(tmp_path / "turned.jpg", exif=exif, icc_profile=b"a profile")
    with PIL.open(tmp_path / "turned.jpg") as image:
        sent = PIL.open(io.BytesIO(read_pictures({"image": image})["image"]))
    assert (sent.size, sent.info["icc_profile"]) == ((6, 8), b"a profile")
    assert not sent.getexif()
    palette = IMAGE.quantize(4)
    palette.info["transparency"] = 0
    assert PIL.open(io.BytesIO(read_pictures({"image": palette})["image"])).info["transparency"] == 0
    assert pixels_of(PIL.new("CMYK", (8, 6))).shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (3, "image must be a path, the bytes of a file, an open file, one of Pillow's images or an array, got 3"),
        (b"", "image must be a PNG, JPEG or WebP file: it is empty"),
        ([IMAGE, IMAGE], "image must be one picture, got 2"),
        ("no/such.png", "image must be a picture that can be read (No such file or directory), got 'no/such.png'"),
        (os.curdir, "image must be the path of a file, got '.'"),
        ("a\0b", "image must be a picture that can be read"),
        ("https://example.org/a.png", "image is read from no URL: save it in a file"),
        (io.StringIO("x"), "image must be a file that is open for bytes"),
        (PIXELS.astype(int), "of floats from 0 to 1, got int64"),
        (PIXELS.astype(float), "of floats from 0 to 1, got values from "),
        (np.full((4, 4), np.nan), "of floats from 0 to 1, got values from nan"),
        (np.moveaxis(PIXELS, 2, 0), "got 3 × 6 × 8: give permute(1, 2, 0) of a tensor"),
        (np.zeros((0, 4, 3), np.uint8), "got 0 × 4 × 3"),
        (PIL.fromarray((PIXELS[:, :, 0] / 255).astype(np.float32)), "must have levels from 0 to 255, got them from "),
        (PIL.fromarray(PIXELS[:, :, 0].astype(np.int32) * 257), ", in mode I: give an array of height × width × 3"),
    ],
)
def test_what_is_no_picture_is_an_error_about_it(value: object, told: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(told)) as error:
        read_pictures({"image": value})
    assert error.value.parameter == "image"


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", 3)
    (tmp_path / "file").write_bytes(bytes(4))
    for value in (tmp_path / "file", io.BytesIO(bytes(4)), bytes(4)):
        with pytest.raises(ArgumentError, match="at most 3 bytes, got more"):
            read_pictures({"image": value})


def test_other_names_are_the_same_pictures() -> None:
    given: Any = {"init_image": PIXELS, "mask_image": MASK, "denoising_strength": 0.5, "outpaint": {"left": 16}}
    request, files, warnings = make_request("x", given, "")
    assert (request.pictures, [*files], request.strength, warnings) == (("image", "mask"), ["image", "mask"], 0.5, ())
    assert request.outpaint is not None
    assert (request.outpaint.left, request.outpaint.top) == (16, 0)


@pytest.mark.parametrize("name", ["image", "mask", "init_image"])
def test_an_empty_path_is_no_request_without_a_picture(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{name} must be a path, .* got ''"):
        make_request("x", {name: ""}, "")
    assert make_request("x", {name: None}, "")[1] == {}


# ---- of the demo


def test_a_picture_is_changed_repainted_and_grown(client: Client) -> None:
    source = PIL.new("RGB", (128, 112), "blue")
    source.paste("red", (40, 40, 80, 80))
    before, mask = np.asarray(source), np.zeros((112, 128), bool)
    mask[30:90, 30:90] = True
    prompt = "a green circle on a blue background"

    def drawn(**given: Any) -> np.ndarray[Any, Any]:
        return np.asarray(client.generate(prompt, steps=2, seed=1, **given).image)

    assert drawn(image=source, strength=0.5).shape == before.shape
    result = client.generate(prompt, steps=2, seed=1)
    assert (drawn(image=result, strength=0.5) == drawn(image=result.image, strength=0.5)).all()
    repainted = drawn(image=source, mask=mask)
    assert (repainted[:, :20] == before[:, :20]).all()
    assert (repainted[mask] != before[mask]).any()
    grown = drawn(image=before, outpaint={"left": 32})
    assert grown.shape == (112, 160, 3)
    assert (grown[:, 42:] == before[:, 10:]).all()
