"""Says of a picture what made it: `krea2 info fox.png`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import ArgumentError
from launcher.requests.output_files import FORMATS

_FIRST = ("prompt", "negative_prompt", "seed", "steps", "guidance", "strength")


def is_picture(path: str | None) -> bool:
    """Whether it is the path of a file whose name is a picture's."""
    return path is not None and Path(path).suffix.lower() in FORMATS and Path(path).is_file()


def describe_picture(path: Path) -> str:
    """Say what made a picture, of ours exactly, else as other programs wrote it, and its digital source type. Raises
    `ArgumentError` if the file says neither, or is none."""
    from PIL import Image

    from launcher.disclosure.xmp import read_source_type
    from launcher.requests.image_metadata import read_infotext, read_made, read_xmp

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            made, text, size, xmp = read_made(image), read_infotext(image), image.size, read_xmp(image)
    except Exception as error:  # whatever Pillow raises over a damaged file
        raise ArgumentError(f"{path}: cannot be read as a picture: {error}") from None
    shape = f"{path}: {size[0]} × {size[1]}"
    source_type = None if xmp is None else read_source_type(xmp)
    last = () if source_type is None else (f"  digital source  {source_type}",)
    if made is not None:
        return "\n".join((f"{shape}, made by {made.get('version', 'an older krea2-engine')}", *_lines(made), *last))
    if text is not None:
        return "\n".join((f"{shape}, made by another program", *(f"  {line}" for line in text.splitlines()), *last))
    if not last:
        raise ArgumentError(f"{shape}, which does not say what made it")
    return "\n".join((f"{shape}, which does not say what made it", *last))


def _lines(made: Mapping[str, Any]) -> list[str]:
    """One for each thing that is known, the request's own first."""
    known = {name: value for name, value in made.items() if value not in (None, {}, []) and name != "version"}
    names = [*(name for name in _FIRST if name in known), *(name for name in known if name not in _FIRST)]
    return [f"  {name.replace('_', ' '):<15} {_shown(known[name])}" for name in names]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, list):
        return "; ".join(map(_shown, value))
    if isinstance(value, str) and len(value) == 64 and value.isalnum():
        return value[:10]  # of a SHA-256
    return f"{value:g}" if isinstance(value, float) else str(value)
