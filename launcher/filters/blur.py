"""Makes of a picture what shows no more than its colours."""

from __future__ import annotations

from launcher.filters.protocol import Picture

_LONGEST_SIDE = 12  # in pixels, of what is kept of a picture


def blurred(picture: Picture) -> bytes:
    """Return the rgb of a picture, in its size, of which at most 12 by 12 pixels are kept."""
    from PIL import Image  # which the front-end imports when it has a picture

    size = (picture.width, picture.height)
    scale = min(1.0, _LONGEST_SIDE / max(size))
    small = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
    image = Image.frombytes("RGB", size, picture.rgb)
    return image.resize(small, Image.Resampling.BOX).resize(size, Image.Resampling.BICUBIC).tobytes()
