"""Image files as the server writes them, without the server's packages."""

from __future__ import annotations

import io
from typing import Any

# As launcher/requests/image_files.py.
FILE_OPTIONS: dict[str, dict[str, Any]] = {
    "jpeg": {"quality": 95, "subsampling": 0},
    "png": {"compress_level": 1},
}


def encode_file(rgb: bytes, side: int, output_format: str) -> bytes | None:
    """A square picture, side · side · 3 bytes, as a file without metadata; None where there is no Pillow."""
    try:
        from PIL import Image
    except ImportError:
        return None
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), rgb).save(file, output_format, **FILE_OPTIONS[output_format])
    return file.getvalue()
