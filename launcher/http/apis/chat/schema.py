"""What the route of chats answers, for the OpenAPI description."""

from __future__ import annotations

from fastapi import Body

from launcher.http.answers.computed import COMPUTED_OF_ALL
from launcher.http.answers.schemas import (
    DRAWING_ERRORS,
    DRAWN,
    SOMETIMES,
    TEXT,
    answer,
    constant,
    integer,
    many,
    object_schema,
    text,
)

_URL = object_schema({"url": text("A data URL, or with response_format url a link.", "data:image/png;base64,iVBORw…")})
_IMAGE = object_schema(
    {
        "type": constant("image_url", "That it is an image."),
        "image_url": _URL | {"description": "Where the image is."},
        "index": integer("Which image of the choice it is, from 0.", 0),
    },
    optional=("index",),
)
_PARTS = {"type": "array", "items": {"type": "object"}}
_MESSAGE = object_schema(
    {
        "role": constant("assistant"),
        "refusal": {"type": "null", "description": "Always null."},
        "content": {
            "anyOf": [TEXT, _PARTS],
            "description": "Images as markdown and warnings, or warnings alone; with answer_as parts, a list of both.",
            "examples": ["![a red circle, seed 7](data:image/webp;base64,UklGRi…)"],
        },
        "images": many(_IMAGE, "With answer_as images: the images."),
    },
    optional=("images",),
)
_CHOICE = object_schema(
    {
        "index": integer("Which choice it is, from 0.", 0),
        "message": _MESSAGE | {"description": "What is answered."},
        "finish_reason": constant("stop"),
        "logprobs": {"type": "null", "description": "Always null."},
    }
)
_USAGE = object_schema(
    {
        "prompt_tokens": integer("Of prompt and negative prompt, as they were written.", 7),
        "completion_tokens": integer("Of the images, each token 16 × 16 pixels.", 1024),
        "total_tokens": integer("All of them.", 1031),
    }
)
_COMPLETION = object_schema(
    {
        "id": text("A name for the answer.", "chatcmpl-7f3c9a"),
        **DRAWN,
        "object": constant("chat.completion"),
        "model": text("The model, as it was asked for.", "Krea-2-Turbo"),
        "choices": many(_CHOICE, "As many as n."),
        "usage": _USAGE | {"description": "How many tokens of text and image it took."},
        "computed": COMPUTED_OF_ALL,
    },
    optional=(*SOMETIMES, "computed"),
)
_CHUNKS = object_schema({"event": TEXT, "data": TEXT}) | {
    "description": "With stream: server-sent events, of a chat.completion.chunk each, with images in pieces, or of an "
    "error after the start, and at last [DONE].",
}
COMPLETION = answer(_COMPLETION, *DRAWING_ERRORS)
COMPLETION[200]["content"]["text/event-stream"] = {"schema": _CHUNKS}

_SAID = [{"role": "user", "content": "a red circle on a blue background"}]
BODY = Body(
    openapi_examples={
        "a picture": {"value": {"messages": _SAID}},
        "as OpenRouter has it": {"value": {"messages": _SAID, "modalities": ["image", "text"], "seed": 7}},
        "as vLLM-Omni has it": {"value": {"messages": _SAID, "extra_body": {"seed": 7, "num_inference_steps": 8}}},
        "a stream": {"value": {"messages": _SAID, "stream": True, "progress": True}},
    }
)
