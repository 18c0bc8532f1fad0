"""The body of OpenAI's images API, and what it means to the engine.

OpenAI's own parameters mean what they mean there; if one cannot change an image here, it is accepted and ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from engine.errors import ArgumentError
from launcher.http.answers.drawing import PARAMETERS
from launcher.http.apis.openai_parts import Cache, LoraChoiceBody, OutpaintBody, Picture
from launcher.http.uploads.pictures import NAMES, Pictures, is_file
from launcher.messages.message_parts import LoraChoice
from launcher.messages.parameter_names import read
from launcher.parameters.table import OTHERS
from launcher.parameters.values import PICTURES

MAX_PARTIAL_IMAGES = 3
_ROUNDED = "rounded up to a multiple of 16"


class ImageRequest(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    """The body of `POST /v1/images/generations`; what is null, empty or left out is the checkpoint's or server's
    default. Numbers may be text, and what other image servers call these parameters is understood, too.\f
    A flat record of 44, since OpenAI's body is one. FastAPI describes it up to the form feed.
    """

    prompt: str = Field(description="What the images are to show.")
    model: str | None = Field(None, description="One of the names that GET /v1/models lists. Default: the first.")
    n: int | None = Field(None, description="How many images to make; image i has the seed plus i.")
    num_images: int | None = Field(None, description="Another name of n.")
    num_images_per_prompt: int | None = Field(None, description="Another name of n.")
    size: str | None = Field(
        None,
        description="Width and height of the images in pixels, as WIDTHxHEIGHT, or auto for the default size. One of "
        "OpenAI's sizes that the model was not made for stands for the model's own size of about that shape. "
        "Default: auto.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None,
        description="How images are answered: as b64_json, or as a url, which is held for an hour at most, and serves "
        "whoever has it. Default: b64_json, but url if model begins with dall-e-, as OpenAI does.",
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(
        None, description="The kind of the image files. Default: png."
    )
    output_compression: int | None = Field(
        None, description="The quality of JPEG and WebP files, of which 100 is the best. Default: 95 and 90."
    )
    stream: bool | None = Field(None, description="Whether to answer with server-sent events. Default: false.")
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = Field(
        None, description="How many previews of each image to send; needs stream. Default: 0."
    )

    seed: int | None = Field(
        None, description="The seed of the first image, or -1 for one that is drawn. Default: one that is drawn."
    )
    steps: int | None = Field(None, description="How many denoise steps each image gets.")
    num_inference_steps: int | None = Field(None, description="Another name of steps.")
    guidance: float | None = Field(None, description="How strongly to follow the prompt, on Krea's scale: 0 is off.")
    guidance_scale: float | None = Field(None, description="Another name of guidance, but that 1 is off.")
    negative_prompt: str | None = Field(
        None, description="What the images are not to show; needs guidance above 0. Default: nothing."
    )
    width: int | None = Field(
        None, description=f"The width of the images in pixels, {_ROUNDED}. Give width and height, or size."
    )
    height: int | None = Field(
        None, description=f"The height of the images in pixels, {_ROUNDED}. Give width and height, or size."
    )
    mu: float | None = Field(None, description="The shift of the schedule. Default: the checkpoint's own.")
    sigmas: tuple[float, ...] | None = Field(
        None,
        description="The noise level at which each step begins, in place of steps: falling, from at most 1. A mu of 0 "
        "leaves them as they are. Default: evenly spaced ones.",
        examples=[[1.0, 0.75, 0.5, 0.25]],
    )
    cache: Cache = Field(
        None,
        description="Whether steps are saved, by forecasting them from those before: quality for pictures almost as "
        "without, fast for more speed, or an object that says how. What was computed is in computed. Default: off.",
    )
    guidance_from: float | None = Field(
        None, description="Where guidance begins, as a fraction of the steps; before it they take half the time."
    )
    guidance_until: float | None = Field(
        None, description="Where guidance ends, as a fraction of the steps; after it they take half the time."
    )
    guidance_outside: Literal["off", "last"] | None = Field(
        None,
        description="What there is outside of these two: off for the prompt alone, last for what guidance last came "
        "to. Default: off.",
    )
    priority: int | None = Field(None, description="Of the requests that wait, those with the highest go first.")
    timeout_s: float | None = Field(
        None,
        description="After how many seconds to give the request up, or at once if it is expected to take longer; more "
        "than 0. Default: never.",
    )
    progress: bool | None = Field(
        None,
        description="Whether to send events for the position in the queue and for steps; needs stream. Default: false.",
    )
    preview_every: int | None = Field(
        None,
        description="How many steps of an image lie between its previews, in place of partial_images. "
        "Default: none come.",
    )

    loras: list[LoraChoiceBody] | None = Field(
        None, description="LoRAs to draw with, each by its name, or by name and strength. Default: none."
    )

    image: Picture = Field(
        None,
        description="A picture to draw over, a PNG, JPEG or WebP file as base64 or as a data URL; a list of one is "
        "taken, too. The answer has its size, unless size says another one. Default: none.",
    )
    mask: Picture = Field(
        None,
        description="What of the picture is drawn anew: a picture of its size or shape, where white is repainted and "
        "black stays, or where it has transparent parts, these are repainted. Default: all of it.",
    )
    strength: float | None = Field(
        None,
        description="How much of the picture is drawn anew: 0 leaves it as it is, 1 leaves nothing. Default: 0.6, but "
        "1 with a mask or outpaint.",
    )
    strength_steps: Literal["partial", "full"] | None = Field(
        None,
        description="Whether strength leaves out the first of the steps, as diffusers does it, or all are run, as in "
        "ComfyUI. Default: partial.",
    )
    outpaint: OutpaintBody | None = Field(
        None, description="Pixels to add to the picture on its sides; needs image. Default: none."
    )
    mask_crop: int | None = Field(
        None,
        description="With a mask: draw its surroundings alone, at full size, and paste them back; as many pixels "
        "around it. Default: all is drawn.",
    )
    mask_feather: int | None = Field(
        None, description="Over how many pixels beside the mask old and new pass into each other. Default: 8."
    )

    moderation: Literal["auto", "low"] | None = Field(
        None, description="Which thresholds the server's filters apply; low is the milder set. Default: auto."
    )
    user: str | None = Field(
        None,
        description="Whom the images are for, at most 256 characters, best a hash: for the server's audit log. "
        "Default: nobody.",
    )
    safety_identifier: str | None = Field(
        None, description="Another name of user, which goes before it. Default: user."
    )

    explain: bool | None = Field(
        None, description="Whether to answer, as explanation, where the time went. Default: false."
    )

    background: Literal["auto", "opaque"] | None = Field(
        None, description="Ignored, with a warning for anything else: images are opaque."
    )
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = Field(
        None, description="Ignored: steps decides."
    )
    style: Literal["vivid", "natural"] | None = Field(None, description="Ignored.")
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="Ignored.")

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)
    _warnings: tuple[str, ...] = PrivateAttr(())
    _pictures: Pictures = PrivateAttr(default_factory=Pictures)

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, given: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Take values as programs send them, and other programs' parameters. Raises `ArgumentError`."""
        if not isinstance(given, dict):
            return validate(given)
        for name in [name for name, value in given.items() if name not in NAMES and is_file(value)]:
            if name in cls.model_fields:
                raise ArgumentError(f"{name} must be a text, and no file", parameter=name)
            if name not in OTHERS:
                told = "send the picture as image, and what of it is repainted as mask"
                raise ArgumentError(f"a file of a form is not taken as {name!a}: {told}", parameter=name)
        plain, warnings = read(given)
        pictures = Pictures()
        pictures.take(plain, given)
        body = validate(plain)
        body._given, body._warnings, body._pictures = given, warnings, pictures
        return body

    @property
    def sent(self) -> dict[str, Any]:
        """What the client sent, for errors in its words."""
        return self._given

    @property
    def pictures(self) -> Pictures:
        """The pictures to draw over, in whose fields something else stands."""
        return self._pictures

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of what was ignored."""
        return self._warnings


class EditRequest(ImageRequest, extra="forbid", strict=True, allow_inf_nan=False):
    """The body of `POST /v1/images/edits`, as a form or as JSON: that of `POST /v1/images/generations`, with a picture
    that is needed. What is null, empty or left out is the checkpoint's or server's default.
    """

    image: Picture = Field(
        description="The picture to draw over, a PNG, JPEG or WebP file: in a form a file, image or image[]; in JSON "
        "base64 or a data URL. There can be one. The answer has its size, unless size says another one."
    )
    input_fidelity: Literal["low", "high"] | None = Field(
        None, description="Ignored, with a warning for high: strength decides."
    )


def as_form(body: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that is sent as a form, whose pictures are files."""
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    for name in PICTURES & schema["properties"].keys():
        field = schema["properties"][name]
        schema["properties"][name] = {"type": "string", "format": "binary", "description": field["description"]}
    schema.pop("$defs")
    return schema


def of_strength(body: ImageRequest) -> tuple[str, ...]:
    """Warn of what a picture with nothing that says what of it is meant becomes: OpenAI's models find that out."""
    said = "mask" in body.pictures or body.strength is not None or body.outpaint is not None
    if said or "image" not in body.pictures:
        return ()
    return (
        "there is neither mask nor strength, so that the whole picture was drawn over (img2img), with strength 0.6: a "
        "lower one keeps more of it, a higher one less, and with a mask what that does not show stays as it is",
    )


def to_parameters(body: ImageRequest) -> dict[str, Any]:
    """Give the parameters of a body by the names that `Studio.draw` takes. Raises `ArgumentError` for what contradicts
    each other."""
    if not body.stream:
        for name in ("partial_images", "progress", "preview_every"):
            if getattr(body, name):
                raise ArgumentError(f"{name} needs stream to be true", parameter=name)
    elif body.response_format == "url":
        raise ArgumentError(
            "response_format must be b64_json where stream is true, got 'url'", parameter="response_format"
        )
    given = body.model_dump(include=set(PARAMETERS), exclude_none=True)
    given["loras"] = tuple(LoraChoice(**lora) for lora in given.get("loras", ()))
    return given
