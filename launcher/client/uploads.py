"""Reads the pictures that a program gives a request: paths, bytes, files, Pillow's images and arrays become files."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from engine.errors import ArgumentError
from launcher.client.results import ImageFile, Result
from launcher.messages.limits import Limits

if TYPE_CHECKING:
    from PIL import Image as PIL

MOST_BYTES = 2 * Limits.max_image_bytes  # of a file: of a longer one a server's socket hears no more than its length
KINDS = "a path, the bytes of a file, an open file, one of Pillow's images or an array"
_ARRAYS = "an array of height × width × 3 or 4, or height × width, of uint8 or of floats from 0 to 1"
_AS_THEY_ARE = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})  # modes that PNG has
_TRANSPARENT = {"RGBa": "RGBA", "PA": "RGBA", "La": "LA"}  # modes that would lose that, and what they become
_ENDLESS = ("I", "F")  # modes whose levels may be any numbers


def read_pictures(given: Mapping[str, Any]) -> dict[str, bytes]:
    """Read the pictures of a request, by the parameters that they are, each as a PNG, JPEG or WebP file.

    Raises `ArgumentError` about the parameter for what is no picture, and for a path that cannot be read.
    """
    return {name: _read(name, value) for name, value in given.items() if value is not None}


def _read(name: str, value: Any) -> bytes:
    if isinstance(value, Result):
        value = value.files
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise ArgumentError(f"{name} must be one picture, got {len(value)}", parameter=name)
        value = value[0]
    if isinstance(value, ImageFile):
        value = value.file
    if isinstance(value, str | os.PathLike):
        file = _read_path(name, os.fspath(value))
    elif isinstance(value, bytes | bytearray | memoryview):
        file = bytes(value)
    elif hasattr(value, "mode") and hasattr(value, "getbands"):
        file = _encode(name, value)
    elif hasattr(value, "shape"):
        file = _encode(name, _from_array(name, value))
    elif hasattr(value, "read"):
        file = value.read(MOST_BYTES + 1)
        if not isinstance(file, bytes):
            raise ArgumentError.of(name, "a file that is open for bytes, as open(path, 'rb')", value)
    else:
        raise ArgumentError.of(name, KINDS, value)
    if not file:
        raise ArgumentError(f"{name} must be a PNG, JPEG or WebP file: it is empty", parameter=name)
    if len(file) > MOST_BYTES:
        raise ArgumentError(f"{name} must be a file of at most {MOST_BYTES} bytes, got more", parameter=name)
    return file


def _read_path(name: str, path: str | bytes) -> bytes:
    shown = os.fsdecode(path)
    if shown.startswith(("http://", "https://", "data:")):
        raise ArgumentError(f"{name} is read from no URL: save it in a file, and give the path of that", parameter=name)
    try:
        if not stat.S_ISREG(Path(shown).stat().st_mode):  # who opens a pipe may wait for ever
            raise ArgumentError.of(name, "the path of a file", shown)
        with open(path, "rb") as file:
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ArgumentError.of(name, f"a picture that can be read ({reason})", shown) from None


def _encode(name: str, image: PIL.Image) -> bytes:
    """Write one of Pillow's images as a PNG file, upright, with its colour profile."""
    from PIL import ImageOps

    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _ENDLESS:
            _check_levels(name, upright)
        if upright.mode not in _AS_THEY_ARE:
            upright = upright.convert(_TRANSPARENT.get(upright.mode, "RGB"))
        file = io.BytesIO()
        options = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
        upright.save(file, "png", compress_level=1, icc_profile=_profile_of(image), **options)
    except (OSError, ValueError, SyntaxError) as error:  # of a file that is read only now
        raise ArgumentError(f"{name} cannot be read: {error}", parameter=name) from None
    return file.getvalue()


def _check_levels(name: str, image: PIL.Image) -> None:
    """Raise `ArgumentError` about levels that would be cut off at white, or be black but for rounding."""
    low, high = cast("tuple[float, float]", image.getextrema())
    if not (low >= 0 and 1 < high <= 255) and (low, high) != (0, 0):
        told = f"from {low:g} to {high:g}, in mode {image.mode}: give {_ARRAYS}"
        raise ArgumentError(f"{name} must have levels from 0 to 255, got them {told}", parameter=name)


def _profile_of(image: PIL.Image) -> bytes | None:
    """Its colour profile, unless that is for the colours of another mode, which Pillow converts without it."""
    return image.info.get("icc_profile") if image.mode in _AS_THEY_ARE else None


def _from_array(name: str, array: Any) -> PIL.Image:
    """Make an image of an array of numpy's, or of another package, whose tensors may lie on a GPU."""
    import numpy as np  # which who has an array has imported
    from PIL import Image

    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    pixels = np.asarray(array)
    if pixels.ndim == 4 and pixels.shape[0] == 1:
        pixels = pixels[0]
    shape = " × ".join(map(str, pixels.shape))
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or not pixels.size:
        turned = pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4)
        hint = ": give permute(1, 2, 0) of a tensor, or numpy.moveaxis(array, 0, 2)" if turned else ""
        raise ArgumentError(f"{name} must be {_ARRAYS}, got {shape}{hint}", parameter=name)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (math.isfinite(low) and low >= 0 and high <= 1):
            raise ArgumentError(f"{name} must be {_ARRAYS}, got values from {low:g} to {high:g}", parameter=name)
        pixels = (pixels.astype(np.float64) * 255).round().astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise ArgumentError(f"{name} must be {_ARRAYS}, got {pixels.dtype}", parameter=name)
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if channels == 1 and pixels.ndim == 3 else pixels))
