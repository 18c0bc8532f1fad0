"""Masks, feathers and pasting: outside of what a mask repaints an answer is its source, to the byte."""

from __future__ import annotations

import random

import pytest
from PIL import Image, ImageChops

from engine.errors import ArgumentError
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.message_parts import Outpaint
from launcher.pictures.layers import extended
from launcher.pictures.wanted import MOST_FEATHER, check_picture
from tests.launcher.pictures.files import Read, mask_of, noise, request, saved


def grown(mask: Image.Image, by: int) -> Image.Image:
    """Where a mask is, and up to `by` pixels beside that."""
    found = Image.new("L", mask.size)
    for y in range(mask.height):
        for x in range(mask.width):
            if mask.getpixel((x, y)):
                found.paste(255, (x - by, y - by, x + by + 1, y + by + 1))
    return found


def differs(one: Image.Image, other: Image.Image) -> Image.Image:
    """255 where two pictures differ."""
    bands = ImageChops.difference(one, other).split()
    return ImageChops.lighter(ImageChops.lighter(bands[0], bands[1]), bands[2]).point([0, *[255] * 255])


@pytest.mark.parametrize("seed", range(12))
def test_outside_of_the_feathered_mask_an_answer_is_its_source_and_inside_what_was_drawn(read: Read, seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(96, 180), rng.randrange(96, 180)
    box = [rng.randrange(side - 20) for side in size]
    mask = Image.new("L", size)
    mask.paste(rng.choice((20, 200, 255)), (*box, *(start + rng.randrange(10, 40) for start in box)))
    sides = {side: rng.choice((0, 7, 24)) for side in ("left", "top", "right", "bottom")} if seed % 3 == 0 else {}
    outpaint = Outpaint(**sides) if any(sides.values()) else None
    feather, crop = rng.choice((0, 1, 2, 7, 8, 20)), rng.choice((None, 0, 30))
    picture = read(image=saved(noise(*size)), mask=saved(mask), outpaint=outpaint, mask_feather=feather, mask_crop=crop)
    at = sides.get("left", 0), sides.get("top", 0)
    whole = size[0] + at[0] + sides.get("right", 0), size[1] + at[1] + sides.get("bottom", 0)
    assert picture.answer_size == whole
    source = extended(noise(*size), (*at, at[0] + size[0], at[1] + size[1]), whole)
    repainted = Image.new("L", whole, 255)
    repainted.paste(mask, at)
    red = Image.new("RGB", (picture.width, picture.height), "red")
    answer = picture.finish(red)
    outside = ImageChops.invert(grown(repainted, feather))
    assert ImageChops.multiply(differs(answer, source), outside).getbbox() is None
    wrong = differs(answer, Image.new("RGB", whole, "red"))
    assert ImageChops.multiply(wrong, repainted.point([0, *[255] * 255])).getbbox() is None
    assert picture.size == sum(
        len(part or b"")
        for part in (picture.pixels.rgb, picture.pixels.mask, picture.patch.alpha, picture.patch.source)
    )


def test_a_feather_falls_off_evenly(read: Read) -> None:
    picture = read(image=saved(noise(128, 128)), mask=mask_of((128, 128), (40, 40, 88, 88)), mask_feather=8)
    assert picture.patch is not None
    row = picture.patch.alpha[64 * 128 :][:128]
    assert (row[40:88], row[:32], row[96:]) == (b"\xff" * 48, bytes(32), bytes(32))
    assert [*row[31:41]] == sorted(row[31:41])
    assert row[31] == 0 < row[32]


def test_ranks_get_of_a_mask_the_upper_left_pixel_of_each_latent_one(read: Read) -> None:
    levels = noise(128, 96, "L")
    picture = read(image=saved(noise(128, 96)), mask=saved(levels))
    wanted = [levels.getpixel((8 * x, 8 * y)) for y in range(12) for x in range(16)]
    wanted = [0 if level < 8 else 255 if level > 247 else level for level in wanted]
    assert [*(picture.pixels.mask or b"")] == wanted


def test_what_is_added_is_repainted_and_goes_on_from_the_edge(read: Read) -> None:
    image = noise(100, 100)
    picture = read(image=saved(image), outpaint=Outpaint(right=28))
    assert picture.answer_size == (128, 100)
    assert (picture.width, picture.height) == (128, 112)
    drawn = Image.frombytes("RGB", (128, 112), picture.pixels.rgb)
    assert drawn.crop((0, 0, 100, 100)).tobytes() == image.tobytes()
    assert {drawn.getpixel((x, 50)) for x in range(99, 128)} == {image.getpixel((99, 50))}
    assert {drawn.getpixel((60, y)) for y in range(99, 112)} == {image.getpixel((60, 99))}
    assert picture.pixels.mask == (bytes(13) + b"\xff" * 3) * 14


def test_a_transparent_mask_repaints_what_is_transparent(read: Read) -> None:
    mask = Image.new("RGBA", (96, 96), "white")
    mask.paste((255, 255, 255, 0), (32, 32, 64, 64))
    picture = read(image=saved(noise(96, 96)), mask=saved(mask))
    black = read(image=saved(noise(96, 96)), mask=mask_of((96, 96), (32, 32, 64, 64)))
    assert picture.pixels.mask == black.pixels.mask
    assert picture.pixels.mask is not None
    assert picture.pixels.mask.count(255) == 16
    (warning,) = picture.warnings
    assert warning.startswith("mask: what is transparent of it is repainted, and what is white stays")
    mask.paste((0, 0, 0, 255), (0, 0, 32, 32))  # as the picture itself with a hole has other colours
    assert read(image=saved(noise(96, 96)), mask=saved(mask)).warnings == ()


def test_a_smaller_mask_of_the_same_shape_is_scaled(read: Read) -> None:
    picture = read(image=saved(noise(192, 192)), mask=mask_of((96, 96), (16, 16, 48, 48)))
    large = read(image=saved(noise(192, 192)), mask=mask_of((192, 192), (32, 32, 96, 96)))
    assert picture.pixels.mask == large.pixels.mask
    assert "96 × 96 pixels were scaled" in picture.warnings[0]
    with pytest.raises(ArgumentError, match=r"^mask must be of the image's size, 192 × 192 pixels, .* got 96 × 64$"):
        read(image=saved(noise(192, 192)), mask=saved(Image.new("L", (96, 64), 255)))


def test_a_cropped_mask_is_drawn_at_full_size_and_pasted_back_where_it_was(read: Read) -> None:
    image = noise(240, 160)
    picture = read(image=saved(image), mask=mask_of(image.size, (200, 100, 220, 110)), mask_crop=10, mask_feather=4)
    assert (picture.width, picture.height, picture.answer_size) == (240, 160, (240, 160))
    assert picture.patch is not None
    left, top, right, bottom = picture.patch.box
    assert (right - left, bottom - top) == (45, 30)
    assert picture.pixels.rgb == image.crop(picture.patch.box).resize((240, 160), Image.Resampling.LANCZOS).tobytes()
    across = [200 <= left + (8 * x + 0.5) * 45 / 240 < 220 for x in range(30)]
    down = [100 <= top + (8 * y + 0.5) * 30 / 160 < 110 for y in range(20)]
    assert picture.pixels.mask == bytes(255 * (column and row) for row in down for column in across)
    assert (
        picture.finish(noise(240, 160, seed=1)).crop((0, 0, 240, 90)).tobytes() == image.crop((0, 0, 240, 90)).tobytes()
    )


def test_a_wide_mask_that_is_drawn_tall_takes_no_memory_for_what_lies_beyond_the_picture(read: Read) -> None:
    image = Image.linear_gradient("L").resize((3000, 400)).convert("RGB")
    mask = mask_of(image.size, (0, 100, 3000, 300))
    picture = read(
        image=saved(image), mask=mask, mask_crop=0, mask_feather=0, width=96, height=4096
    )  # or 1.2 GB of pixels
    assert (picture.width, picture.height, picture.answer_size) == (96, 4096, image.size)
    assert picture.patch is not None
    assert picture.patch.box == (0, 0, 3000, 400)
    assert picture.patch.inner == (96, 13)
    assert (
        picture.pixels.rgb[: 96 * 3 * 13]
        == image.resize((96, 13), Image.Resampling.LANCZOS, reducing_gap=3.0).tobytes()
    )


@pytest.mark.parametrize("crop", [None, 8])
def test_previews_show_what_stays_of_the_source(read: Read, crop: int | None) -> None:
    image = Image.new("RGB", (180, 100), "blue")
    picture = read(image=saved(image), mask=mask_of(image.size, (96, 0, 180, 100)), mask_feather=0, mask_crop=crop)
    preview = picture.finish_preview(Image.new("RGB", (picture.width // 8, picture.height // 8), "red"))
    scale = picture.width // 8 / picture.width
    assert preview.size == (round(180 * scale), round(100 * scale))
    assert preview.getpixel((2, 5)) == (0, 0, 255)
    assert preview.getpixel((preview.width - 3, 5)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("wanted", "parameter", "message"),
    [
        ({"mask": saved(Image.new("L", (96, 96)))}, "mask", "it is black all over"),
        ({"mask": mask_of((96, 96), (0, 0, 96, 96), level=7)}, "mask", "all over, its lightest level is 7 of 255"),
        ({"mask": mask_of((96, 96), (1, 1, 8, 8))}, "mask", "too small, below 8 pixels: give mask_crop"),
        ({"mask": mask_of((96, 96), (1, 1, 8, 8)), "mask_crop": 96}, "mask", "8 pixels: give a smaller mask_crop or"),
        ({"mask": mask_of((96, 96), (0, 0, 96, 5)), "width": 192, "height": 96}, "mask", "repaints nothing of the 192"),
        ({"outpaint": Outpaint(), "mask": mask_of((96, 96), (0, 0, 96, 96))}, "outpaint", "on at least one side"),
        ({"outpaint": Outpaint(left=-1)}, "outpaint", r"outpaint.left must be between 0 and 4096 pixels, got -1"),
        ({"mask_crop": 5}, "mask_crop", "needs a mask, or outpaint"),
        ({"mask_feather": 5}, "mask_feather", "needs a mask, or outpaint"),
        ({"mask_feather": MOST_FEATHER + 1, "outpaint": Outpaint(left=9)}, "mask_feather", "between 0 and 256 pixels"),
        ({"width": 10**12}, "width", "between 64 and 4096 pixels, got 1000000000000"),
        ({"height": -5}, "height", "between 64 and 4096 pixels, got -5"),
    ],
)
def test_what_repaints_nothing_and_what_cannot_be_is_refused(
    read: Read, wanted: dict[str, object], parameter: str, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message) as raised:
        read(image=saved(noise(96, 96)), **wanted)
    assert raised.value.parameter == parameter


def test_a_mask_that_repaints_all_is_fine(read: Read) -> None:
    picture = read(image=saved(noise(96, 96)), mask=saved(Image.new("L", (96, 96), 255)))
    assert set(picture.pixels.mask or b"") == {255}


def test_what_a_request_says_of_its_picture_is_checked_without_it() -> None:
    check_picture(request(image=b"", mask=b"", mask_crop=0, mask_feather=0)[0], Limits())
    with pytest.raises(ArgumentError, match="outpaint must add pixels"):
        check_picture(Generate(request_id="id", prompt="", pictures=("image",), outpaint=Outpaint()), Limits())
