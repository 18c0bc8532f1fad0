"""The process that reads pictures, from the outside."""

from __future__ import annotations

import pytest
from PIL import Image

from engine.errors import ArgumentError
from tests.launcher.pictures.files import Read, mask_of, noise, saved


def test_a_picture_of_a_size_that_can_be_drawn_comes_as_it_is(read: Read) -> None:
    image = noise(192, 160)
    picture = read(image=saved(image))
    assert (picture.width, picture.height, picture.answer_size) == (192, 160, (192, 160))
    assert picture.pixels.rgb == image.tobytes()
    assert (picture.pixels.mask, picture.patch, picture.warnings) == (None, None, ())
    assert picture.size == 192 * 160 * 3
    drawn = noise(192, 160, seed=1)
    assert picture.finish(drawn).tobytes() == drawn.tobytes()


def test_what_a_mask_keeps_is_the_source_and_what_it_repaints_is_what_was_drawn(read: Read) -> None:
    image = noise(200, 150)
    picture = read(image=saved(image), mask=mask_of(image.size, (64, 64, 104, 96)))
    assert (picture.width, picture.height, picture.answer_size) == (208, 160, (200, 150))
    drawn = noise(208, 160, seed=1)
    finished = picture.finish(drawn)
    repainted, feathered = (64, 64, 104, 96), (56, 56, 112, 104)
    assert finished.crop(repainted).tobytes() == drawn.crop(repainted).tobytes()
    for each in (finished, image):
        each.paste("white", feathered)
    assert finished.tobytes() == image.tobytes()


def test_it_is_said_where_a_picture_is_transparent_and_nothing_is_repainted_for_that(read: Read) -> None:
    hole = saved(noise(96, 96, "RGBA"))
    (warning,) = read(image=hole).warnings
    assert "was laid over white" in warning
    assert read(image=hole, mask=hole).warnings == ()
    opaque = noise(96, 96, "RGBA")
    opaque.putalpha(255)
    assert read(image=saved(opaque)).warnings == ()


@pytest.mark.parametrize("data", [b"", b"GIF89a", saved(noise(64, 64))[:3000]])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(read: Read, data: bytes) -> None:
    with pytest.raises(ArgumentError, match=r"^image ") as raised:
        read(image=data)
    assert raised.value.parameter == "image"
    with pytest.raises(ArgumentError, match=r"^mask ") as raised:
        read(image=saved(Image.new("RGB", (96, 96))), mask=data)
    assert raised.value.parameter == "mask"
