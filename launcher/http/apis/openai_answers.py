"""The responses and events of OpenAI's images API."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request

from engine.errors import Krea2Error
from launcher.client.results import ImageFile, PreviewFile, Result, Usage
from launcher.http.answers.computed import COMPUTED, of_image
from launcher.http.answers.drawing import Drawing
from launcher.http.answers.errors import error_body
from launcher.http.answers.event_stream import write_event
from launcher.http.answers.schemas import (
    DRAWING_ERRORS,
    DRAWN,
    SOMETIMES,
    TEXT,
    Responses,
    Schema,
    answer,
    constant,
    integer,
    many,
    object_schema,
    text,
)
from launcher.http.answers.wording import in_words_of
from launcher.messages.client_messages import Accepted

_IMAGE = object_schema(
    {
        "b64_json": text("The file, unless response_format was url.", "iVBORw0KGgo…") | {"contentEncoding": "base64"},
        "url": {"type": "string", "description": "Where the file is, if response_format was url."},
        "index": integer("Which image of the request it is, from 0.", 0),
        "seed": integer("The seed that makes it again.", 7),
        "computed": COMPUTED,
    },
    optional=("b64_json", "url", "computed"),
)


def _counts(text_tokens: int, image_tokens: int) -> Schema:
    return object_schema(
        {"text_tokens": integer("Of text.", text_tokens), "image_tokens": integer("Of images.", image_tokens)}
    )


_USAGE = object_schema(
    {
        "input_tokens": integer("Of prompt and negative prompt, as they were written, and of a picture.", 7),
        "input_tokens_details": _counts(7, 0) | {"description": "What they are of."},
        "output_tokens": integer("Of the images, each token 16 × 16 pixels.", 1024),
        "output_tokens_details": _counts(0, 1024) | {"description": "What they are of."},
        "total_tokens": integer("All of them.", 1031),
    }
)
_IMAGES = object_schema(
    {
        **DRAWN,
        "data": many(_IMAGE, "The images, in order."),
        "background": constant("opaque", "Images have no transparent parts."),
        "usage": _USAGE | {"description": "How many tokens of text and image it took."},
    },
    optional=SOMETIMES,
)


def _with_events(kind: str) -> Responses:
    """Describe what is answered where the kinds of events begin as `kind`."""
    events = object_schema({"event": TEXT, "data": TEXT}) | {
        "description": f"With stream: server-sent events. `{kind}.partial_image` is a preview, `{kind}.completed` an "
        "image, the last one with timings and warnings, `error` an error after the start; with progress also "
        f"`{kind}.accepted` and `{kind}.progress`.",
    }
    described = answer(_IMAGES, *DRAWING_ERRORS)
    described[200]["content"]["text/event-stream"] = {"schema": events}
    return described


IMAGES_SCHEMA, EDITS_SCHEMA = _with_events("image_generation"), _with_events("image_edit")


def images_object(
    drawing: Drawing, result: Result, urls: Sequence[str] | None, warnings: tuple[str, ...]
) -> dict[str, object]:
    """Put a result into a response's object, with each image as base64, or as its url if there are `urls`.

    warnings: besides the result's own.
    """
    shown, images = ("b64_json", result.files) if urls is None else ("url", urls)
    data = [
        {shown: image, "index": index, "seed": seed, **of_image(computed)}
        for index, (image, seed, computed) in enumerate(zip(images, result.seeds, result.computed, strict=True))
    ]
    return {
        "created": int(time.time()),
        "request_id": drawing.request_id,  # as the client knows it, which is not the engine's
        "data": data,
        "seed": result.seed,
        "size": f"{result.width}x{result.height}",
        "output_format": result.format,
        "background": "opaque",
        "usage": usage_object(result.usage, drawing.picture_tokens(result.usage, len(images))),
        **result.told(warnings),
    }


def usage_object(usage: Usage, picture_tokens: int) -> dict[str, object]:
    """Count tokens as OpenAI's images API does: no text comes out. picture_tokens: of what was drawn over."""
    return {
        "input_tokens": usage.text_tokens + picture_tokens,
        "input_tokens_details": {"text_tokens": usage.text_tokens, "image_tokens": picture_tokens},
        "output_tokens": usage.image_tokens,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": usage.image_tokens},
        "total_tokens": usage.total_tokens + picture_tokens,
    }


async def write_events(
    drawing: Drawing,
    request: Request,
    sent: Mapping[str, Any],
    *,
    kind: str,
    progress: bool,
    warnings: tuple[str, ...],
) -> AsyncGenerator[bytes, None]:
    """Write the server-sent events of one request: OpenAI's, and with `progress` our own between them.

    The last image waits for the result: it carries timings and all warnings. sent: the body, for errors. kind: what the
    kinds of events begin with.
    """
    request_id, checked = drawing.request_id, drawing.checked
    partial_images = [0] * checked.num_images
    images: list[ImageFile] = []

    def write_image(what: str, file: bytes, output_format: str, size: str, own: Mapping[str, object]) -> bytes:
        common = {
            "b64_json": file,  # bytes are base64 in msgspec's JSON
            "request_id": request_id,
            "created_at": int(time.time()),
            "size": size,
            "output_format": output_format,
            "quality": "auto",
            "background": "opaque",
        }
        return write_event(f"{kind}.{what}", {**common, **own})

    def write_completed(image: ImageFile, more: Mapping[str, object]) -> bytes:
        usage = usage_object(image.usage, drawing.picture_tokens(image.usage, 1))
        own = {"index": image.index, "seed": image.seed, "usage": usage, **of_image(image.computed), **more}
        if image.made_for is not None:
            own["made_for"] = msgspec.structs.asdict(image.made_for)
        size = f"{image.width}x{image.height}"
        return write_image("completed", image.file, checked.output_format, size, own)

    async with aclosing(drawing.events()) as events:
        try:
            async for event in events:
                match event:
                    case PreviewFile(index=index, step=step, steps=steps):
                        own = {"partial_image_index": partial_images[index], "index": index, "step": step}
                        partial_images[index] += 1
                        yield write_image("partial_image", event.file, "jpeg", drawing.size, {**own, "steps": steps})
                    case ImageFile():
                        images.append(event)
                        if len(images) < checked.num_images:
                            yield write_completed(event, {})
                    case Result():
                        yield write_completed(images[-1], event.told(warnings))
                    case _ if progress:
                        said = {"warnings": event.warnings + warnings} if isinstance(event, Accepted) else {}
                        fields = msgspec.structs.asdict(event) | said | {"request_id": request_id}
                        del fields["version"]
                        yield write_event(f"{kind}.{type(event).__name__.lower()}", fields)
        except Krea2Error as error:
            problem = in_words_of(sent, error)
            request.state.error_code = problem.code  # for the log
            yield write_event("error", error_body(problem, request_id))
