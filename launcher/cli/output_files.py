"""Names and writes the files that the command line's images go to."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from engine.errors import ArgumentError

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def output_format(path: Path) -> str:
    """Tell the image format that a path's suffix asks for. Raises `ArgumentError` if nothing can be written there."""
    image_format = FORMATS.get(path.suffix.lower())
    if image_format is None:
        raise ArgumentError.of("output", f"a path that ends in {', '.join(FORMATS)}", str(path))
    if os.path.isdir(path) or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ArgumentError.of("output", "a file in a folder that exists and can be written", str(path))
    return image_format


def numbered_paths(path: Path, count: int) -> list[Path]:
    """Give `path` for one image, or several with `_0`, `_1`, … before the suffix. Raises `ArgumentError` for names that
    are too long."""
    paths = [path] if count == 1 else [path.with_stem(f"{path.stem}_{index}") for index in range(count)]
    try:
        os.lstat(max(paths, key=lambda path: len(path.name)))
    except FileNotFoundError:
        pass
    except OSError as error:
        allowed = f"a path that can be written ({error.strerror})"
        raise ArgumentError.of("output", allowed, str(path)) from None
    return paths


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
