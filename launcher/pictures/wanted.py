"""What a request wants of its picture, and what the model and the limits allow: all that its layout depends on."""

from __future__ import annotations

import msgspec

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.pictures.strength import STRENGTH_STEPS
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.message_parts import Outpaint

_OF_PICTURES = ("strength", "outpaint", "mask_crop", "mask_feather")
NO_PICTURES = "image is not taken by this server: start the server without --no-image-input"
DEFAULT_FEATHER = 8  # pixels
MOST_FEATHER = 256


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """How a picture is to be laid out; sizes in pixels.

    names: of the files, `image` and perhaps `mask`. width, height: as they were asked for. multiple: of which the sides
    of what is drawn are; latent: along a side of a latent pixel. good_sides: the shortest and the longest side that the
    model was made for.
    """

    names: tuple[str, ...]
    width: int | None
    height: int | None
    outpaint: Outpaint | None
    mask_crop: int | None
    mask_feather: int
    multiple: int
    latent: int
    good_sides: tuple[int, int] | None
    limits: Limits

    @classmethod
    def of(cls, request: Generate, model: ModelConfig, limits: Limits) -> Wanted:
        """Take from a request what concerns its picture. Raises what `check_picture` does."""
        check_picture(request, limits)
        domain = model.size_domain
        return cls(
            names=request.pictures,
            width=request.width,
            height=request.height,
            outpaint=request.outpaint,
            mask_crop=request.mask_crop,
            mask_feather=DEFAULT_FEATHER if request.mask_feather is None else request.mask_feather,
            multiple=model.size_multiple,
            latent=model.vae.scale_factor,
            good_sides=None if domain is None else (domain.least, domain.most),
            limits=limits,
        )

    @property
    def keeps(self) -> bool:
        """Whether parts of the picture stay as they are."""
        return "mask" in self.names or self.outpaint is not None


def check_picture(request: Generate, limits: Limits) -> None:
    """Check what a request says of its picture, whose files need not be known, or of one that it has not. Raises
    `ArgumentError`."""
    if request.strength_steps not in STRENGTH_STEPS:
        raise ArgumentError.of("strength_steps", f"one of {', '.join(STRENGTH_STEPS)}", request.strength_steps)
    if "image" not in request.pictures:
        given = [*request.pictures, *(name for name in _OF_PICTURES if getattr(request, name) is not None)]
        if given:
            raise ArgumentError(f"{given[0]} needs an image to begin from", parameter=given[0])
        return
    for name in ("width", "height"):
        _between(name, getattr(request, name), limits.min_side, limits.max_side)
    if request.outpaint is not None:
        sides = {side: getattr(request.outpaint, side) for side in request.outpaint.__struct_fields__}
        for side, pixels in sides.items():
            _between(f"outpaint.{side}", pixels, 0, limits.max_side, "outpaint")
        if not any(sides.values()):
            raise ArgumentError("outpaint must add pixels on at least one side", parameter="outpaint")
    _between("mask_crop", request.mask_crop, 0, limits.max_side)
    _between("mask_feather", request.mask_feather, 0, MOST_FEATHER)
    for name in ("mask_crop", "mask_feather"):
        if getattr(request, name) is not None and request.outpaint is None and "mask" not in request.pictures:
            raise ArgumentError(f"{name} needs a mask, or outpaint: without them all is drawn anew", parameter=name)


def _between(name: str, value: int | None, low: int, high: int, parameter: str | None = None) -> None:
    if value is not None and not low <= value <= high:
        text = f"{name} must be between {low} and {high} pixels, got {value}"
        raise ArgumentError(text, parameter=parameter or name)
