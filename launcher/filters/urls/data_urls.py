"""Writes pictures as data URLs, no larger than services look at."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

from launcher.filters.protocol import Picture

LONGEST_SIDE = 1024  # pixels; services reduce what is larger
_QUALITY = 90


def as_data_url(picture: Picture) -> str:
    """Reduce a picture to `LONGEST_SIDE`, and write it as JPEG."""
    from PIL import Image

    image = Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BILINEAR, reducing_gap=1.0)  # by whole factors first
    file = BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
