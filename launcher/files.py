"""Where the command line's images go."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import ArgumentError

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def output_format(path: Path) -> str:
    """The image format that a path's suffix asks for. Raises `ArgumentError` if nothing can be written there."""
    image_format = FORMATS.get(path.suffix.lower())
    if image_format is None:
        raise ArgumentError.of("output", f"a path that ends in {', '.join(FORMATS)}", str(path))
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ArgumentError.of("output", "a file in a folder that exists and can be written", str(path))
    return image_format


def numbered_paths(path: Path, count: int) -> list[Path]:
    """`path` for one image; with `_0`, `_1`, … before the suffix for several."""
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}_{index}") for index in range(count)]


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
