"""Contact sheets."""

from __future__ import annotations

import numpy as np
from PIL import Image

from bench.adherence.contact_sheet import CELL, Tile, contact_sheet

BLUE, RED = (0, 0, 255), (214, 20, 20)


def count(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == colour).all(axis=2).sum())


def test_pictures_are_fitted_into_their_cells_and_none_is_enlarged() -> None:
    sizes = {(32, 32): 32 * 32, (CELL, 48): CELL * 48, (2 * CELL, CELL): CELL * CELL // 2}
    for size, area in sizes.items():
        assert count(contact_sheet([Tile(Image.new("RGB", size, BLUE), "")], 1), BLUE) == area


def test_only_pictures_with_a_fault_have_a_red_frame_and_its_name_is_written() -> None:
    picture = Image.new("RGB", (32, 32), BLUE)
    right, framed, named = (
        contact_sheet([Tile(picture, "a blue square", fault)], 1) for fault in ("", " ", "wrong: size")
    )
    assert count(right, RED) == 0
    assert count(framed, RED) == 38 * 38 - 32 * 32
    assert count(named, RED) > count(framed, RED)
    assert count(named, BLUE) == 32 * 32


def test_rows_are_as_wide_as_the_columns_and_as_high_as_their_longest_text() -> None:
    tile = Tile(Image.new("L", (32, 32)), "a circle")
    one, full, two = (contact_sheet([tile] * number, 3) for number in (1, 3, 4))
    assert one.width < full.width == two.width
    assert one.height == full.height < two.height
    longer = contact_sheet([tile, Tile(tile.picture, "a red circle above a green star on a white background")], 3)
    assert longer.height > full.height
