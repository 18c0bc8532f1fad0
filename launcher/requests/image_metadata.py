"""What an image file says of how it was made: prompt, seed and settings, in the way that each format can hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

_EXIF_DESCRIPTION = 0x010E


def save_options(image_format: str, made: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options of Pillow's `save` for a file in this format: png, jpeg or webp.

    made: prompt, seed and settings, which PNG holds as text chunks, the others as their EXIF's description, in JSON;
    None for none. PNG is compressed lightly: level 1 takes half of the default's time for a sixth more bytes.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    options: dict[str, Any] = {
        "png": {"compress_level": 1},
        "jpeg": {"quality": 95, "subsampling": 0},
        "webp": {"quality": 90},
    }[image_format]
    if made is not None and image_format == "png":
        settings = {name: value for name, value in made.items() if name not in ("prompt", "seed")}
        text = options["pnginfo"] = PngInfo()
        text.add_itxt("prompt", made["prompt"])
        text.add_text("seed", str(made["seed"]))
        text.add_text("settings", json.dumps(settings))
    elif made is not None:
        exif = options["exif"] = Image.Exif()
        exif[_EXIF_DESCRIPTION] = json.dumps(made)
    return options


def read_made(image: Image.Image) -> dict[str, Any] | None:
    """Return the prompt, seed and settings that `save_options` had written into a file of ours; None for none."""
    if image.format == "PNG":
        if "settings" not in image.info:
            return None
        prompt, seed = str(image.info["prompt"]), int(image.info["seed"])
        return {"prompt": prompt, "seed": seed, **json.loads(image.info["settings"])}
    description = image.getexif().get(_EXIF_DESCRIPTION)
    return None if description is None else dict(json.loads(description))
