"""Many small pictures in one, each with a caption."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 144  # pixels of the square that a picture is fitted into; none is enlarged
FONT_SIZE = 11
_MARGIN, _FRAME = 8, 3
_CHARACTERS = 22  # of a line of text, which fits under a picture
_LINE = FONT_SIZE + 3
_PAPER, _INK, _RED = (255, 255, 255), (30, 30, 30), (214, 20, 20)


@dataclass(frozen=True)
class Tile:
    """A picture of the sheet, and what is written under it. One with a fault has a red frame, and the fault in red."""

    picture: Image.Image
    caption: str
    fault: str = ""


def contact_sheet(tiles: Sequence[Tile], columns: int) -> Image.Image:
    """RGB; row by row, each as high as its longest text needs. tiles: at least one."""
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    heights = [_MARGIN + CELL + _MARGIN + _LINE * max(len(_lines(tile)) for tile in row) for row in rows]
    width = _MARGIN + (CELL + _MARGIN) * min(columns, len(tiles))
    sheet = Image.new("RGB", (width, sum(heights) + _MARGIN), _PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            _draw(tile, sheet, _MARGIN + (CELL + _MARGIN) * column, top + _MARGIN)
        top += height
    return sheet


def _lines(tile: Tile) -> list[tuple[str, tuple[int, int, int]]]:
    """Of the text, with their colours."""
    texts = ((tile.caption, _INK), (tile.fault, _RED))
    return [(line, colour) for text, colour in texts for line in textwrap.wrap(text, _CHARACTERS)]


def _draw(tile: Tile, sheet: Image.Image, left: int, top: int) -> None:
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    picture = tile.picture.convert("RGB")
    picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    x, y = left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2
    if tile.fault:
        right, bottom = x + picture.width - 1, y + picture.height - 1
        pen.rectangle((x - _FRAME, y - _FRAME, right + _FRAME, bottom + _FRAME), fill=_RED)
    sheet.paste(picture, (x, y))
    for number, (line, colour) in enumerate(_lines(tile)):
        pen.text((left, top + CELL + _MARGIN + _LINE * number), line, colour, font)
