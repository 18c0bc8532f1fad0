"""The images API: what a request may hold, what it means to the engine, and the form of responses and events.

OpenAI's own parameters mean what they mean there; if one cannot change an image here, it is accepted and ignored.
"""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, Field, model_validator
from starlette.requests import Request

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, Krea2Error
from launcher.client.results import Event, ImageFile, PreviewFile, Result
from launcher.http.errors import error_body
from launcher.messages.client_messages import Accepted, Generate, LoraChoice
from launcher.messages.parameter_names import ALIASES, RANDOM_SEED, in_own_names, read_size
from launcher.requests.check import CheckedRequest
from launcher.requests.usual_sizes import describe_own_size, own_size

MAX_PARTIAL_IMAGES = 3
_ROUNDED = "rounded up to a multiple of 16"


class LoraChoiceBody(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    """One of the `loras` of a request."""

    name: str = Field(description="The name by which GET /v1/loras lists it.")
    strength: float | None = Field(None, description="How strongly to apply it. Default: as it was loaded.")

    @model_validator(mode="before")
    @classmethod
    def _take_name(cls, given: object) -> object:
        return {"name": given} if isinstance(given, str) else given


class ImageRequest(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    """The body of `POST /v1/images/generations`; what is null or left out is the checkpoint's or server's default.\f
    A flat record of 31, since OpenAI's body is one. FastAPI describes it up to the form feed.
    """

    prompt: str = Field(description="What the images are to show.")
    model: str | None = Field(None, description="One of the names that GET /v1/models lists. Default: the first.")
    n: int | None = Field(None, description="How many images to make; image i has the seed plus i.")
    num_images_per_prompt: int | None = Field(None, description="Another name of n.")
    size: str | None = Field(
        None,
        description="Width and height of the images in pixels, as WIDTHxHEIGHT, or auto for the default size. One of "
        "OpenAI's sizes that the model was not made for stands for the model's own size of about that shape.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None,
        description="How images are answered: as b64_json, which is the default, or as a url, which is held for an "
        "hour at most, and serves whoever has it.",
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(
        None, description="The kind of the image files. Default: png."
    )
    stream: bool | None = Field(None, description="Whether to answer with server-sent events. Default: false.")
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = Field(
        None, description="How many previews of each image to send; needs stream."
    )

    seed: int | None = Field(None, description="The seed of the first image. Default, as of -1: one that is drawn.")
    steps: int | None = Field(None, description="How many denoise steps each image gets.")
    num_inference_steps: int | None = Field(None, description="Another name of steps.")
    guidance: float | None = Field(None, description="How strongly to follow the prompt, on Krea's scale: 0 is off.")
    guidance_scale: float | None = Field(None, description="Another name of guidance, but that 1 is off.")
    negative_prompt: str | None = Field(None, description="What the images are not to show; needs guidance above 0.")
    width: int | None = Field(
        None, description=f"The width of the images in pixels, {_ROUNDED}. Give width and height, or size."
    )
    height: int | None = Field(
        None, description=f"The height of the images in pixels, {_ROUNDED}. Give width and height, or size."
    )
    mu: float | None = Field(None, description="The shift of the schedule. Default: the checkpoint's own.")
    priority: int | None = Field(None, description="Of the requests that wait, those with the highest go first.")
    timeout_s: float | None = Field(
        None,
        description="After how many seconds to give the request up, or at once if it is expected to take longer; more "
        "than 0. Default: never.",
    )
    progress: bool | None = Field(
        None, description="Whether to send events for the position in the queue and for steps; needs stream."
    )
    preview_every: int | None = Field(
        None, description="How many steps of an image lie between its previews, in place of partial_images."
    )

    loras: list[LoraChoiceBody] | None = Field(
        None, description="LoRAs to draw with, each by its name, or by name and strength."
    )

    explain: bool | None = Field(None, description="Whether to answer, as explanation, where the time went.")

    background: Literal["auto", "opaque"] | None = Field(None, description="Ignored: images are opaque.")
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(None, description="Ignored, with a warning.")
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = Field(
        None, description="Ignored: steps decides."
    )
    style: Literal["vivid", "natural"] | None = Field(None, description="Ignored.")
    moderation: Literal["auto", "low"] | None = Field(None, description="Ignored.")
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="Ignored.")
    user: str | None = Field(None, description="Ignored.")
    safety_identifier: str | None = Field(None, description="Ignored.")


def to_generate(body: ImageRequest, request_id: str, model: ModelConfig) -> Generate:
    """Translate a body into the engine's request. Raises `ArgumentError` for parameters that contradict each other."""
    if not body.stream:
        for name in ("partial_images", "progress", "preview_every"):
            if getattr(body, name):
                raise ArgumentError(f"{name} needs stream to be true", parameter=name)
    elif body.response_format == "url":
        raise ArgumentError(
            "response_format must be b64_json where stream is true, got 'url'", parameter="response_format"
        )
    fields = body.model_dump(include=set(Generate.__struct_fields__), exclude_none=True)
    fields["loras"] = tuple(LoraChoice(**lora) for lora in fields.get("loras", ()))
    fields, _ = in_own_names(fields | _other_names(body))
    if fields.get("seed") == RANDOM_SEED:
        del fields["seed"]
    if own := own_size(_by_habit(body), model):
        fields["width"], fields["height"] = own
    return Generate(request_id=request_id, **fields)


def warn(body: ImageRequest, model: ModelConfig) -> tuple[str, ...]:
    """Warn of a size that gave way to the model's own, of a guidance that was meant otherwise, and of what one may have
    expected to change the file."""
    replaced = describe_own_size(_by_habit(body), model)
    warnings = [*in_own_names(_other_names(body))[1], *([replaced] if replaced else [])]
    if body.output_compression not in (None, 100):
        warnings.append("output_compression was ignored: files are written at the server's own quality")
    return tuple(warnings)


def preview_every(body: ImageRequest, steps: int) -> int | None:
    """Choose the steps between previews such that at most `partial_images` come; an explicit `preview_every` wins."""
    if body.preview_every is None and body.partial_images:
        return math.ceil(steps / (body.partial_images + 1))
    return body.preview_every


def in_words_of(body: ImageRequest, error: Krea2Error) -> Krea2Error:
    """Name the parameter that an error is about as the client sent it; other errors are returned as they are."""
    name = error.parameter
    if name is None or not isinstance(error, ArgumentError):
        return error
    sent, message = name, error.message
    if getattr(body, name, None) is None:
        if name in ("width", "height") and body.size is not None:
            return ArgumentError(f"size {body.size}: {message}", parameter="size")
        sent = next(
            (alias for alias, own in ALIASES.items() if own == name and getattr(body, alias, None) is not None), name
        )
    if message.startswith(f"{name} "):
        message = sent + message.removeprefix(name)
    return ArgumentError(message, parameter=sent)


def explain_invalid(problems: Sequence[Any]) -> ArgumentError:
    """Put the first of pydantic's complaints about a body in the words of the other errors about parameters."""
    problem = problems[0]
    where = [part for part in problem["loc"] if part != "body"]
    name = next((part for part in where if isinstance(part, str)), None)
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    match problem["type"]:
        case "json_invalid":
            message = f"the body is not valid JSON: {problem['ctx']['error']}"
        case _ if name is None:
            message = "the body must be a JSON object of valid Unicode text"
        case "missing":
            message = f"{path} is required"
        case "extra_forbidden" if len(where) > 1:
            message = f"unknown parameter {_short(path)}"
        case "extra_forbidden":
            close = difflib.get_close_matches(name, ImageRequest.model_fields, n=1)
            message = f"unknown parameter {_short(name)}" + (f": did you mean {close[0]}?" if close else "")
            name = _short(name).strip("'")
        case kind:
            match = re.match(r"Input should be (.*)", problem["msg"], re.DOTALL)
            allowed = match[1] if match else f"as follows: {problem['msg']}"
            if kind == "model_attributes_type":
                allowed = 'a name, or {"name": …, "strength": …}'
            message = ArgumentError.of(path, allowed, problem["input"]).message
    return ArgumentError(message, parameter=name)


# ---- responses


def images_object(
    result: Result, request_id: str, urls: Sequence[str] | None, warnings: tuple[str, ...]
) -> dict[str, object]:
    """Put a result into a response's object, with each image as base64, or as its url if there are `urls`.

    request_id: as the client knows it, which is not the engine's. warnings: besides the result's own.
    """
    shown, images = ("b64_json", result.files) if urls is None else ("url", urls)
    data = [
        {shown: image, "index": index, "seed": seed}
        for index, (image, seed) in enumerate(zip(images, result.seeds, strict=True))
    ]
    return {
        "created": int(time.time()),
        "request_id": request_id,
        "data": data,
        "seed": result.seed,
        "size": f"{result.width}x{result.height}",
        "output_format": result.format,
        "background": "opaque",
        **result.told(warnings),
    }


async def write_events(
    body: ImageRequest,
    checked: CheckedRequest,
    request: Request,
    event: Event,
    later: AsyncGenerator[Event, None],
    warnings: tuple[str, ...],
) -> AsyncGenerator[bytes, None]:
    """Write the server-sent events of one request: OpenAI's, and with `progress` our own between them.

    `event` comes before the `later` ones. The last image waits for the result: it carries timings and all warnings.
    """
    request_id, partial_images = request.state.request_id, [0] * checked.num_images
    images: list[ImageFile] = []

    def write_image(kind: str, file: bytes, output_format: str, own: Mapping[str, object]) -> bytes:
        common = {
            "b64_json": file,  # bytes are base64 in msgspec's JSON
            "request_id": request_id,
            "created_at": int(time.time()),
            "size": f"{checked.width}x{checked.height}",
            "output_format": output_format,
            "quality": "auto",
            "background": "opaque",
        }
        return _write_event(f"image_generation.{kind}", {**common, **own})

    def write_completed(image: ImageFile, more: Mapping[str, object]) -> bytes:
        own = {"index": image.index, "seed": image.seed, "usage": None, **more}
        return write_image("completed", image.file, checked.output_format, own)

    async with aclosing(later):
        try:
            while True:
                match event:
                    case PreviewFile(index=index, step=step, steps=steps):
                        own = {"partial_image_index": partial_images[index], "index": index, "step": step}
                        partial_images[index] += 1
                        yield write_image("partial_image", event.file, "jpeg", {**own, "steps": steps})
                    case ImageFile():
                        images.append(event)
                        if len(images) < checked.num_images:
                            yield write_completed(event, {})
                    case Result():
                        yield write_completed(images[-1], event.told(warnings))
                        return
                    case _ if body.progress:
                        said = {"warnings": event.warnings + warnings} if isinstance(event, Accepted) else {}
                        fields = msgspec.structs.asdict(event) | said | {"request_id": request_id}
                        del fields["version"]
                        yield _write_event(f"image_generation.{type(event).__name__.lower()}", fields)
                event = await anext(later)
        except Krea2Error as error:
            problem = in_words_of(body, error)
            request.state.error_code = problem.code  # for the log
            yield _write_event("error", error_body(problem, request_id))


def _write_event(kind: str, fields: Mapping[str, object]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


def _by_habit(body: ImageRequest) -> tuple[int, int] | None:
    """The size that may have been sent by habit: one without width and height."""
    if body.size in (None, "auto") or body.width is not None or body.height is not None:
        return None
    return read_size("size", body.size)


def _other_names(body: ImageRequest) -> dict[str, object]:
    """The parameters that were sent under names which are not the engine's."""
    return body.model_dump(include={*ALIASES, "size"}, exclude_none=True)


def _short(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")
