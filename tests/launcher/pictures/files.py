"""Picture files for tests, and requests that have them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

from PIL import Image

from launcher.messages.client_messages import Generate
from launcher.pictures.prepared import PreparedPicture

Read = Callable[..., PreparedPicture]
NAMES = ("image", "mask")


def request(**wanted: Any) -> tuple[Generate, dict[str, bytes]]:
    """A request with the parameters that are given, and its files."""
    files = {name: wanted.pop(name) for name in NAMES if name in wanted}
    return Generate(request_id="id", prompt="a red circle", pictures=tuple(files), **wanted), files


def noise(width: int, height: int, mode: str = "RGB", *, seed: int = 0) -> Image.Image:
    """A picture no two pixels of which are alike."""
    size = len(Image.new(mode, (width, height)).tobytes())
    return Image.frombytes(mode, (width, height), random.Random(seed).randbytes(size))


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A file of it."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def mask_of(size: tuple[int, int], box: tuple[int, int, int, int], level: int = 255) -> bytes:
    """A mask that repaints a box."""
    mask = Image.new("L", size)
    mask.paste(level, box)
    return saved(mask)
