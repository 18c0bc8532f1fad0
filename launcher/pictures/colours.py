"""The colours of pictures, whatever their files keep them as: 8 bits, without a palette, in sRGB, over white."""

from __future__ import annotations

import io

from PIL import Image, ImageChops, ImageCms

from engine.errors import ArgumentError

_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of profiles, and the mode of what they describe
_SAME = 2  # levels by which a profile may change colours and still be sRGB, but for rounding
_NEARLY = 8  # levels from black and from white that a mask's compression may cost


def plain(image: Image.Image) -> Image.Image:
    """Return it as RGB, L, CMYK or, if anything of it is transparent, RGBA: modes that can be scaled."""
    if image.mode in _DEEP:
        image.info.pop("transparency", None)  # a level of 16 bits
        image = image.convert("I").point(lambda level: level * (1 / 257) + 0.5).convert("L")
    if image.has_transparency_data:
        key = image.info.get("transparency")
        if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, too
            image.info["transparency"] = tuple(level >> 8 for level in key)
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            image = image.convert("RGB")
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return image


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert what `plain` returned to RGB by its profile, if that can be used, and lay it over white."""
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    colours = image.convert("RGB") if alpha is not None else image
    colours = _by_profile(colours, profile) if profile else colours
    colours = colours.convert("RGB")
    if alpha is None:
        return colours
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, mask=alpha)
    return white


def mask_levels(image: Image.Image) -> Image.Image:
    """Return what a mask repaints, as L: what is transparent if anything is, else what is white. What is nearly black
    or white is meant to be: JPEG files have no sharp edges.

    Raises `ArgumentError` about one that is nearly black all over, as programs make it whose levels are 0 and 1.
    """
    if image.mode == "RGBA":
        levels = ImageChops.invert(image.getchannel("A"))
    else:
        levels = (image.convert("RGB") if image.mode == "CMYK" else image).convert("L")
        lightest = max(level for level, pixels in enumerate(levels.histogram()) if pixels)
        if 0 < lightest < _NEARLY:
            told = f"it is nearly black all over, its lightest level is {lightest} of 255"
            raise ArgumentError(f"mask must be white where the image is repainted: {told}", parameter="mask")
    return levels.point([0 if level < _NEARLY else 255 if level > 255 - _NEARLY else level for level in range(256)])


def is_white_on_nothing(mask: Image.Image) -> bool:
    """Whether a mask is transparent but for what is white: that was painted to be repainted, or is what stays."""
    if mask.mode != "RGBA":
        return False
    opaque = mask.getchannel("A").point([0] * 128 + [255] * 128)
    seen = Image.composite(mask.convert("L"), Image.new("L", mask.size, 255), opaque)
    return opaque.getbbox() is not None and not any(seen.histogram()[: 256 - _NEARLY])


def _by_profile(colours: Image.Image, profile: bytes) -> Image.Image:
    """Convert to sRGB; a profile that is damaged, or of something else, is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES.get(source.profile.xcolor_space.strip())
        if mode == "RGB" and colours.mode == "L":
            colours = colours.convert("RGB")
        if mode != colours.mode:
            return colours
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "RGB" and _changes_nothing(transform):
            return colours
        return ImageCms.applyTransform(colours, transform) or colours
    except MemoryError:
        raise
    except Exception:
        return colours


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether it is sRGB that a profile describes: then no pixel is changed, not even by rounding."""
    levels = [*range(0, 256, 15)]
    colours = bytes(level for red in levels for green in levels for blue in levels for level in (red, green, blue))
    sample = Image.frombytes("RGB", (len(levels), len(levels) ** 2), colours)
    changed = ImageChops.difference(sample, ImageCms.applyTransform(sample, transform) or sample)
    return max(changed.tobytes()) <= _SAME
