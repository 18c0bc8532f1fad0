"""Pictures for tests of what knows them again."""

from __future__ import annotations

import io
import random
from typing import Any

from PIL import Image, ImageDraw, ImageFilter


def drawn(seed: int, size: tuple[int, int] = (256, 192)) -> Image.Image:
    """A picture of soft shapes."""
    chance = random.Random(seed)

    def colour() -> Any:
        return tuple(chance.randrange(256) for _ in range(3))

    image = Image.new("RGB", size, colour())
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = chance.randrange(size[0]), chance.randrange(size[1])
        draw.ellipse((x - 60, y - 50, x + 60, y + 50), fill=colour())
    return image.filter(ImageFilter.GaussianBlur(3))


def file_of(image: Image.Image, kind: str = "png", **options: int) -> bytes:
    """It as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
