"""Where pictures lie in what is drawn: what holds for any size, and some sizes by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ArgumentError
from launcher.messages.limits import Limits
from launcher.messages.message_parts import Outpaint
from launcher.pictures.geometry import Canvas, compare_mask, crop_box, lay_out
from launcher.pictures.wanted import Wanted

MULTIPLE = 16
MOST = Limits().max_side
SIDES = st.integers(1, 300) | st.integers(1, 20_000)
ASKED = st.none() | st.integers(64, MOST)
ADDED = st.integers(0, 40) | st.integers(0, MOST)
OUTPAINTS = st.none() | st.builds(Outpaint, left=ADDED, top=ADDED, right=ADDED, bottom=ADDED)
GOOD_SIDES = st.none() | st.just((96, 256))


def wanted(**changes: Any) -> Wanted:
    return Wanted(
        **{
            "names": ("image",),
            "width": None,
            "height": None,
            "outpaint": None,
            "mask_crop": None,
            "mask_feather": 8,
            "multiple": MULTIPLE,
            "latent": 8,
            "good_sides": None,
            "limits": Limits(),
            **changes,
        }
    )


def laid_out(source: tuple[int, int], want: Wanted) -> Canvas | ArgumentError:
    try:
        return lay_out(source, want)
    except ArgumentError as error:
        return error


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDES, SIDES), ASKED, ASKED, OUTPAINTS, st.booleans(), st.booleans(), GOOD_SIDES)
def test_what_is_drawn_is_within_limits_and_the_picture_fills_its_place(
    source: tuple[int, int],
    width: int | None,
    height: int | None,
    outpaint: Outpaint | None,
    masked: bool,
    cropped: bool,
    good_sides: tuple[int, int] | None,
) -> None:
    want = wanted(
        names=("image", "mask") if masked else ("image",),
        width=width,
        height=height,
        outpaint=outpaint,
        mask_crop=8 if cropped and (masked or outpaint) else None,
        good_sides=good_sides,
    )
    canvas = laid_out(source, want)
    if isinstance(canvas, ArgumentError):
        assert canvas.parameter in ("image", "outpaint", "width", "height")
        assert canvas.message.startswith(canvas.parameter)
        assert max(source) > 64 * min(source) or width or height or outpaint
        return
    limits = want.limits
    assert all(side % MULTIPLE == 0 and limits.min_side <= side <= MOST for side in canvas.drawn)
    assert canvas.drawn[0] * canvas.drawn[1] <= limits.max_pixels
    if not want.keeps:
        assert canvas.size == canvas.drawn
    elif want.mask_crop is None:
        assert all(answer <= drawn for answer, drawn in zip(canvas.size, canvas.drawn, strict=True))
        assert all(
            drawn - answer < MULTIPLE or drawn == want.multiple * -(-max(64, (good_sides or (0,))[0]) // want.multiple)
            for answer, drawn in zip(canvas.size, canvas.drawn, strict=True)
        )
        assert width in (None, canvas.size[0])
        assert height in (None, canvas.size[1])
    if good_sides is not None and width is None and height is None:
        assert all(good_sides[0] <= side <= good_sides[1] for side in canvas.drawn)
    left, top, right, bottom = canvas.seen
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    assert 0 <= canvas.at[0] < canvas.at[2] <= canvas.size[0]
    assert 0 <= canvas.at[1] < canvas.at[3] <= canvas.size[1]
    if outpaint is None:
        assert canvas.at == (0, 0, *canvas.size)
    grown = outpaint or Outpaint()
    whole = source[0] + grown.left + grown.right, source[1] + grown.top + grown.bottom
    assert (canvas.size == whole) == (not canvas.warnings)
    if canvas.size == whole:  # to the pixel
        assert canvas.seen == (0.0, 0.0, 1.0, 1.0)
        assert canvas.at == (grown.left, grown.top, grown.left + source[0], grown.top + source[1])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cropped_mask_is_drawn_whole_and_in_the_shape_of_what_is_drawn(data: st.DataObject) -> None:
    canvas = data.draw(st.tuples(st.integers(1, 500), st.integers(1, 500)))
    drawn = data.draw(st.tuples(st.integers(4, 64), st.integers(4, 64)).map(lambda s: (16 * s[0], 16 * s[1])))
    left, top = (data.draw(st.integers(0, side - 1)) for side in canvas)
    right, bottom = data.draw(st.integers(left + 1, canvas[0])), data.draw(st.integers(top + 1, canvas[1]))
    margin = data.draw(st.integers(0, 100))
    box = crop_box((left, top, right, bottom), margin, canvas, drawn)
    assert 0 <= box[0] <= max(0, left - margin)
    assert 0 <= box[1] <= max(0, top - margin)
    assert box[2] >= min(canvas[0], right + margin)
    assert box[3] >= min(canvas[1], bottom + margin)
    width, height = box[2] - box[0], box[3] - box[1]
    assert abs(width * drawn[1] - height * drawn[0]) <= max(drawn)  # a pixel's worth
    for start, end, room in ((box[0], box[2], canvas[0]), (box[1], box[3], canvas[1])):
        assert end <= room or start == 0


@pytest.mark.parametrize(
    ("source", "changes", "size", "drawn", "warning"),
    [
        ((512, 336), {}, (512, 336), (512, 336), None),
        ((500, 333), {}, (512, 336), (512, 336), "were scaled and cropped to 512 × 336, multiples of 16"),
        ((500, 333), {"names": ("image", "mask")}, (500, 333), (512, 336), None),
        ((4000, 3000), {}, (3328, 2496), (3328, 2496), "as large as an image may be"),
        ((4000, 3000), {"names": ("image", "mask")}, (3328, 2496), (3328, 2496), "as large as an image may be"),
        ((9000, 100), {"names": ("image", "mask")}, (4096, 46), (4096, 64), "as large as an image may be"),
        ((1, 1), {}, (64, 64), (64, 64), "as small as an image may be"),
        ((1, 1), {"names": ("image", "mask")}, (1, 1), (64, 64), None),
        ((1200, 800), {"width": 600}, (608, 400), (608, 400), "as the size says"),
        ((1200, 800), {"height": 512, "width": 512}, (512, 512), (512, 512), "were scaled and cropped to 512 × 512"),
        ((400, 300), {"outpaint": Outpaint(left=100, bottom=20)}, (500, 320), (512, 320), None),
        ((64, 64), {"good_sides": (96, 256)}, (96, 96), (96, 96), "made for sides from 96 to 256"),
        ((640, 480), {"good_sides": (96, 256)}, (256, 192), (256, 192), "made for sides from 96 to 256"),
        ((900, 100), {"good_sides": (96, 256)}, (256, 96), (256, 96), "made for sides from 96 to 256"),
        ((640, 480), {"good_sides": (96, 256), "width": 512}, (512, 384), (512, 384), "as the size says"),
        (
            (640, 480),
            {"good_sides": (96, 256), "names": ("image", "mask"), "mask_crop": 16},
            (640, 480),
            (256, 192),
            None,
        ),
    ],
)
def test_sizes_by_hand(
    source: tuple[int, int],
    changes: dict[str, Any],
    size: tuple[int, int],
    drawn: tuple[int, int],
    warning: str | None,
) -> None:
    canvas = lay_out(source, wanted(**changes))
    assert (canvas.size, canvas.drawn) == (size, drawn)
    assert bool(canvas.warnings) == (warning is not None)
    assert warning is None or warning in canvas.warnings[0]


def test_a_size_covers_the_picture_and_its_middle_is_seen() -> None:
    canvas = lay_out((1200, 800), wanted(width=400, height=400))
    assert canvas.seen == pytest.approx((1 / 6, 0, 5 / 6, 1))


@pytest.mark.parametrize(
    ("source", "changes", "parameter", "message"),
    [
        ((10_000, 100), {}, "image", "its longer side is at most 64 times the shorter one, got 10000 × 100 pixels"),
        ((100, 10_000), {"width": 4096}, "width", "width 4096 makes height 409600 by the shape of the image"),
        ((100, 100), {"height": 4096}, "width", "at most 8400000 pixels, got 4096 × 4096"),
        ((1, 1), {"outpaint": Outpaint(left=4096), "width": 64}, "width", "makes height 1 by"),
        ((1, 1000), {"outpaint": Outpaint(left=4096), "width": 64, "height": 256}, "outpaint", "nothing of its 1 × 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    source: tuple[int, int], changes: dict[str, Any], parameter: str, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message) as raised:
        lay_out(source, wanted(**changes))
    assert raised.value.parameter == parameter


def test_a_mask_has_the_shape_of_its_picture() -> None:
    assert compare_mask((300, 200), (300, 200)) is None
    assert "150 × 100 pixels were scaled to the image's 300 × 200" in (compare_mask((150, 100), (300, 200)) or "")
    assert compare_mask((1024, 683), (3000, 2001)) is not None
    with pytest.raises(ArgumentError, match=r"^mask must be of the image's size, 300 × 200 .* got 200 × 300$"):
        compare_mask((200, 300), (300, 200))
