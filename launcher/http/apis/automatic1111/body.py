"""The body of `POST /sdapi/v1/txt2img`, which that of img2img has, too: what is drawn by, and what A1111's clients send
besides."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from engine.errors import ArgumentError
from launcher.http.answers.schemas import means
from launcher.http.apis.openai_parts import Cache
from launcher.parameters.values import READERS

NONE = (None, "", 0, False, "None", "none")  # values that ask for nothing; 0.0 is 0
# What changes nothing here. Who sends one of these values is not told so, since clients send them by habit; None is for
# parameters that only say how others of them are to be done.
IGNORED: dict[str, tuple[object, ...] | None] = {
    "enable_hr": NONE,
    "save_images": NONE,
    "alwayson_scripts": (*NONE, {}),
    "styles": (*NONE, []),
    "restore_faces": NONE,
    "tiling": NONE,
    "subseed_strength": NONE,
    "image_cfg_scale": (*NONE, 1.5),
    "initial_noise_multiplier": (*NONE, 1),
    "latent_mask": NONE,
    "img2img_color_correction": NONE,
    "seed_resize_from_w": (*NONE, -1),
    "seed_resize_from_h": (*NONE, -1),
    "refiner_checkpoint": NONE,
    "infotext": NONE,
    "clip_skip": (*NONE, 1),
    "distilled_cfg_scale": NONE,
    "eta": (*NONE, 1),
    "s_churn": NONE,
    "s_min_uncond": NONE,
    "s_tmin": NONE,
    "s_tmax": (*NONE, "inf", float("inf")),
    "s_noise": (*NONE, 1),
} | dict.fromkeys((
    "denoising_strength", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y",
    "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_cfg",
    "hr_distilled_cfg", "hr_additional_modules", "hr_force", "hr_sampler_index", "firstphase_width",
    "firstphase_height", "firstpass_image", "refiner_switch_at", "refiner_start", "refiner_steps", "refiner_prompt",
    "refiner_negative", "subseed", "sampler_index", "script_args", "override_settings_restore_afterwards",
    "do_not_save_samples", "do_not_save_grid", "disable_extra_networks", "comments", "force_task_id", "url", "auth",
    "mask_round", "mask_blur_x", "mask_blur_y",
))  # fmt: skip
PRIVATE = ("url", "auth")  # of the server itself, which SillyTavern sends along
_CLOSE = 0.8  # how alike an unknown name and a known one are that is probably meant
_MOST_COMPARED = 32  # unknown names, which takes a millisecond each


def _describe_ignored(schema: dict[str, Any]) -> None:
    """Add the ignored parameters to the body's description."""
    for name, neutral in IGNORED.items():
        if name not in PRIVATE and name not in schema["properties"]:
            said = "Ignored." if neutral is None else "Ignored, with a warning where it asks for something."
            schema["properties"][name] = {"title": name, "description": said}


def _read_cache(value: Any) -> Any:
    return None if value is None else READERS["cache"]("cache", value)


def _read_sigmas(value: Any) -> Any:
    return None if value is None else READERS["sigmas"]("sigmas", value)


class Txt2ImgBody(BaseModel, extra="allow", allow_inf_nan=False, json_schema_extra=_describe_ignored):
    """The body of `POST /sdapi/v1/txt2img`; what is null, empty or left out is the checkpoint's or server's default.\f
    A flat record, since A1111's body is one. FastAPI describes it up to the form feed.
    """

    prompt: str | None = Field(
        None,
        description="What the images are to show. `<lora:NAME:STRENGTH>` in it draws with a loaded LoRA. Weights such "
        "as (word:1.3) are read as text. Default: nothing.",
    )
    negative_prompt: str | None = Field(
        None,
        description="What the images are not to show; not used where there is no guidance, as with Turbo. "
        "Default: nothing.",
    )
    seed: int | None = Field(
        None, description="The seed of the first image, or -1 for one that is drawn. Default: one that is drawn."
    )
    steps: int | None = Field(None, description="How many denoise steps each image gets.")
    width: int | None = Field(None, description="The width of the images in pixels, rounded up to a multiple of 16.")
    height: int | None = Field(None, description="The height of the images in pixels, rounded up to a multiple of 16.")
    batch_size: int | None = Field(
        None, description="How many images to make, times n_iter.", json_schema_extra=means("num_images")
    )
    n_iter: int | None = Field(
        None, description="How many images to make, times batch_size.", json_schema_extra=means("num_images")
    )
    cfg_scale: float | None = Field(
        None,
        description="How strongly to follow the prompt: Krea's guidance and 1, so that 1 is off. 7, which clients send "
        "by habit, stands for the checkpoint's own; Turbo, which has guidance built in, takes none. "
        "Default: the checkpoint's own.",
    )
    guidance: float | None = Field(
        None,
        description="The same on Krea's scale, 0 being off, in place of cfg_scale and taken as it is. "
        "Default: what cfg_scale says.",
    )
    sampler_name: Any = Field(
        None, description="Euler, the only one; another is replaced by it, with a warning. Default: Euler."
    )
    scheduler: Any = Field(
        None, description="Automatic, the checkpoint's own; another is replaced, with a warning. Default: Automatic."
    )
    override_settings: dict[str, Any] | None = Field(
        None, description="Ignored, with a warning, but for an sd_model_checkpoint that is served."
    )
    script_name: str | None = Field(None, description="Empty, as there are no scripts. Default: empty.")
    send_images: bool | None = Field(None, description="Whether the answer is to have the images. Default: true.")
    output_format: Literal["png", "jpeg", "webp"] | None = Field(None, description="Of the files. Default: png.")
    output_compression: int | None = Field(
        None, description="The quality of JPEG and WebP files, of which 100 is the best. Default: 95 and 90."
    )
    mu: float | None = Field(None, description="The shift of the schedule. Default: the checkpoint's own.")
    sigmas: Annotated[tuple[float, ...] | None, BeforeValidator(_read_sigmas)] = Field(
        None,
        description="The noise level at which each step begins, in place of steps: falling, from at most 1. A mu of 0 "
        "leaves them as they are. Default: evenly spaced ones.",
        examples=[[1.0, 0.75, 0.5, 0.25]],
    )
    cache: Annotated[Cache, BeforeValidator(_read_cache)] = Field(
        None, description="Which steps are saved: off, quality, fast, or an object that says how. Default: off."
    )
    guidance_from: float | None = Field(None, description="Where guidance begins, as a fraction of the steps.")
    guidance_until: float | None = Field(None, description="Where guidance ends, as a fraction of the steps.")
    guidance_outside: Literal["off", "last"] | None = Field(
        None,
        description="What there is outside of these two: the prompt alone, or the last guidance again. Default: off.",
    )
    priority: int | None = Field(None, description="Of the requests that wait, those with the highest go first.")
    timeout_s: float | None = Field(
        None, description="After how many seconds to give the request up, more than 0. Default: never."
    )
    explain: bool | None = Field(
        None, description="Whether info is to have an explanation: where the time went. Default: false."
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, given: object) -> object:
        """Take an empty string, which forms send, for a parameter that was left out."""
        return {name: value for name, value in given.items() if value != ""} if isinstance(given, dict) else given

    @property
    def others(self) -> dict[str, Any]:
        """What was sent that nothing is drawn by."""
        return self.model_extra or {}

    def echo(self) -> dict[str, Any]:
        """What was sent, as the answer repeats it: neither secrets nor pictures."""
        left_out = (*PRIVATE, "alwayson_scripts", "script_args", "firstpass_image", "init_images", "mask")
        return self.model_dump(exclude=set(left_out), exclude_unset=True)


def check_names(body: Txt2ImgBody) -> list[str]:
    """Return the names that nobody knows. Raises `ArgumentError` for one that is probably a known one, mistyped."""
    unknown = [name for name in body.others if name not in IGNORED]
    for name in unknown[:_MOST_COMPARED]:
        if close := difflib.get_close_matches(name, type(body).model_fields, n=1, cutoff=_CLOSE):
            raise ArgumentError(f"unknown parameter {name!a}: did you mean {close[0]}?", parameter=name)
    return unknown
