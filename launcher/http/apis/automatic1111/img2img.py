"""The body of `POST /sdapi/v1/img2img`: that of txt2img, with a picture and what of it is to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from engine.errors import ArgumentError
from launcher.http.answers.schemas import means
from launcher.http.apis.automatic1111.body import Txt2ImgBody
from launcher.http.uploads.pictures import SENT, Pictures

STRENGTH = 0.75  # where none is sent, as A1111 has it
_PADDING = 32  # pixels, as its page has it
_ORIGINAL = (None, "", 0, 1)  # fills that begin from the picture, or that clients send by habit
_CROPPED = (None, "", 0, 1)
_LIST: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1}
_SHOWN = 40  # characters


class Img2ImgBody(Txt2ImgBody, extra="allow", allow_inf_nan=False):
    """The body of `POST /sdapi/v1/img2img`; what is null, empty or left out is the checkpoint's or server's default.\f
    A flat record, since A1111's body is one. FastAPI describes it up to the form feed.
    """

    init_images: Any = Field(
        description="A list of one picture to draw over, as base64 or as a data URL.", json_schema_extra=_LIST
    )
    mask: str | None = Field(
        None, description="What of it is drawn anew, as base64: white is, black stays. Default: all of it."
    )
    denoising_strength: float | None = Field(
        None,
        description=f"How much of the picture is drawn anew: 0 leaves it as it is, 1 nothing. Default: {STRENGTH}.",
    )
    mask_blur: int | None = Field(
        None,
        description="Over how many pixels beside the mask old and new pass into each other. Default: 8.",
        json_schema_extra=means("mask_feather"),
    )
    inpaint_full_res: bool | None = Field(
        None,
        description="Whether the mask's surroundings alone are drawn, at full size, and pasted back. Default: false.",
    )
    inpaint_full_res_padding: int | None = Field(
        None, description="How many pixels around the mask are drawn then. Default: 32."
    )
    inpainting_mask_invert: int | None = Field(
        None, description="Must be 0: what is white in the mask is drawn anew. Default: 0."
    )
    inpainting_fill: Any = Field(
        None, description="Ignored, with a warning for 2 and 3: the picture is what is under it."
    )
    resize_mode: Any = Field(
        None, description="Ignored, with a warning for 2 and 3: a picture of another shape is cropped at its centre."
    )
    include_init_images: bool | None = Field(
        None, description="Ignored, with a warning: answers repeat no pictures. Default: false."
    )

    _pictures: Pictures = PrivateAttr(default_factory=Pictures)

    @model_validator(mode="wrap")
    @classmethod
    def _take_pictures(cls, given: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Take the pictures out of what was sent."""
        if not isinstance(given, dict):
            return validate(given)
        pictures = Pictures()
        for name, sent in (("image", "init_images"), ("mask", "mask")):
            if given.get(sent):
                pictures.add(name, given[sent])
                given[sent] = SENT
        body = validate(given)
        body._pictures = pictures
        return body

    @property
    def pictures(self) -> Pictures:
        """The pictures, in whose fields something else stands."""
        return self._pictures

    def echo(self) -> dict[str, Any]:
        """What was sent, as the answer repeats it: neither secrets nor pictures."""
        return super().echo() | {"init_images": None, "mask": None}


def describe_picture(body: Img2ImgBody) -> tuple[dict[str, Any], list[str]]:
    """Give the parameters of a body that are about its picture, and warnings. Raises `ArgumentError`."""
    if "image" not in body.pictures:
        raise ArgumentError("init_images must be a list with a picture", parameter="init_images")
    if body.inpainting_mask_invert:
        told = "what is white in the mask is drawn anew, so send it inverted"
        raise ArgumentError(f"inpainting_mask_invert must be 0: {told}", parameter="inpainting_mask_invert")
    strength = STRENGTH if body.denoising_strength is None else body.denoising_strength
    given: dict[str, Any] = {"strength": strength}
    if "mask" in body.pictures:
        given["mask_feather"] = body.mask_blur
        if body.inpaint_full_res:
            padding = body.inpaint_full_res_padding
            given["mask_crop"] = _PADDING if padding is None else padding
    return given, list(_ignored(body))


def _ignored(body: Img2ImgBody) -> Iterator[str]:
    if body.resize_mode not in _CROPPED:
        yield f"resize_mode {_short(body.resize_mode)} was ignored: a picture of another shape is cropped at its centre"
    if body.inpainting_fill not in _ORIGINAL:
        yield f"inpainting_fill {_short(body.inpainting_fill)} was ignored: what is under the mask is the picture"
    if body.include_init_images:
        yield "include_init_images was ignored: answers repeat no pictures"


def _short(value: object) -> str:
    return ascii(str(value)[:_SHOWN])
