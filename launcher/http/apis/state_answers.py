"""What the routes of the server's state and of LoRAs answer, for the OpenAPI description."""

from __future__ import annotations

from launcher.http.answers.schemas import (
    ENGINE_ERRORS,
    MADE_FOR,
    TEXT,
    Responses,
    Schema,
    answer,
    constant,
    flag,
    integer,
    many,
    number,
    numbers,
    object_schema,
    or_null,
    text,
)
from launcher.requests.check import OUTPUT_FORMATS

_MODEL_NAME = text("The model, by its first name.", "Krea-2-Turbo")
_MODEL = object_schema(
    {
        "id": text("A name that requests may give as model.", "Krea-2-Turbo"),
        "object": constant("model"),
        "created": integer("When the server began, in seconds since 1970.", 1_790_000_000),
        "owned_by": constant("krea2-engine"),
    }
)
MODELS = answer(object_schema({"object": constant("list"), "data": many(_MODEL, "The names of the model.")}))
MODEL = answer(_MODEL)

_LIMITS = {
    "min_side": integer("The shortest side of an image, in pixels.", 64),
    "max_side": integer("The longest side, in pixels.", 4096),
    "max_pixels": integer("The largest product of width and height.", 8_400_000),
    "max_steps": integer("The most denoise steps of an image.", 200),
    "max_guidance": number("The strongest guidance.", 20.0),
    "max_images": integer("The most images of a request.", 10),
    "max_seed": integer("The greatest seed.", 2**53 - 1),
    "max_prompt_bytes": integer("The longest prompt, in bytes of UTF-8.", 16_384),
    "max_queue": integer("How many requests may wait.", 256),
    "max_loras": integer("How many LoRAs may be loaded.", 32),
    "max_request_loras": integer("How many LoRAs a request may choose.", 8),
    "max_image_bytes": integer("The largest file of a picture to start from.", 50_000_000),
    "max_image_pixels": integer("The largest product of its width and height.", 64_000_000),
}
_DEFAULTS = {
    "width": integer("In pixels.", 1024),
    "height": integer("In pixels.", 1024),
    "steps": integer("Denoise steps.", 8),
    "guidance": number("On Krea's scale: 0 is off.", 0.0),
}
SETTINGS = answer(
    object_schema(
        {
            "model": _MODEL_NAME,
            "is_demo": flag("Whether it is the demo, which draws coloured shapes only.", False),
            "defaults": object_schema(_DEFAULTS) | {"description": "What requests get that do not say."},
            "limits": object_schema(_LIMITS) | {"description": "What one request may ask for, and what may wait."},
            "max_lora_strength": number("The greatest strength of a LoRA, positive or negative.", 10.0),
            "output_formats": many({"type": "string", "enum": OUTPUT_FORMATS}, "What files may be."),
            "size_multiple": integer("Sides are rounded up to a multiple of it.", 16),
            "good_sides": or_null(
                {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2, "examples": [[96, 256]]}
                | {"description": "The shortest and longest sides that the model was made for, where that is known."}
            ),
            "image_input": flag("Whether requests may start from a picture.", True),
            "api_key_required": flag("Whether requests need an API key.", True),
            "reports": flag("Whether POST /v1/reports takes reports of pictures.", False),
        }
    )
)

HEALTH = answer(object_schema({"status": constant("ok")}))
_LOAD = {
    "waiting": integer("How many requests wait.", 0),
    "running": integer("How many requests are being drawn.", 1),
    "backlog_s": or_null(number("Seconds of work that all of them still are, where speeds are known.", 4.5)),
}
READY = answer(object_schema({"status": constant("ready"), **_LOAD}), *ENGINE_ERRORS)
_STAGE = object_schema(
    {
        "name": text("What it does: starting, loading or warming up.", "loading"),
        "done": integer("Bytes of weights that it has read.", 13_500_000_000),
        "total": integer("Bytes of weights that there are.", 33_100_000_000),
    }
)
STATUS = answer(
    object_schema(
        {
            "model": _MODEL_NAME,
            "version": text("Of this server.", "1.0"),
            "device": or_null(text("What the engine runs on, once it has started.", "NVIDIA H200")),
            "ranks": integer("How many processes compute.", 2),
            "tp": integer("Ranks that share each layer.", 2),
            "sp": integer("Ranks that share each image's tokens.", 1),
            "cfg_parallel": flag("Whether prompt and negative prompt are on ranks of their own.", False),
            "ready": flag("Whether images can be made.", True),
            "not_ready": or_null(text("Why not.", "it is loading")),
            "stage": or_null(_STAGE | {"description": "How far it is, while it starts."}),
            "uptime_s": number("Seconds since it began.", 7200.0),
            **_LOAD,
            "done": integer("How many requests were done.", 5),
            "failed": integer("How many requests failed.", 1),
            "dropped_messages": integer("How many messages of clients were not understood.", 0),
            "restarts": integer("How often the ranks were started again.", 0),
            "given_up": flag("Whether requests fail at once, since ranks are lost again and again.", False),
            "quarantined": many(TEXT, "Requests that are not tried again, since ranks died of them."),
            "rank_memory": many(numbers("Of a rank.", {"weights": 25e9}), "Bytes of each rank, by what they hold."),
            "memory_plan": many(TEXT, "How the memory of a rank is used, in sentences."),
        }
    ),
    *ENGINE_ERRORS,
)
METRICS: Responses = {200: {"description": "The metrics.", "content": {"text/plain": {"schema": TEXT}}}}

_OF_FILE = {
    "left_out": or_null(text("What of its file was not read, if anything.", "2 of 530 keys")),
    "made_for": or_null(
        MADE_FOR | {"description": "The steps that its file says it needs, for requests that say none."}
    ),
}
_LORA = object_schema(
    {
        "object": constant("lora"),
        "name": text("By which requests choose it.", "ink"),
        "file": text("Its file, in the folder that clients may load from.", "ink.safetensors"),
        "strength": number("Of requests that give none.", 1.0),
        "family": text("What kind of file it is.", "diffusers"),
        "modules": integer("How many layers, norms and modulation tables it changes.", 224),
        "bytes": integer("How much memory of each rank it takes.", 180_000_000),
        **_OF_FILE,
    }
)
_MERGED = {
    "file": text("Its file.", "ink.safetensors"),
    "strength": number("With which it was merged.", 1.0),
    **_OF_FILE,
}
LORAS = answer(
    object_schema(
        {
            "object": constant("list"),
            "data": many(_LORA, "The LoRAs that requests may choose."),
            "merged": many(object_schema(_MERGED), "The LoRAs that are part of the weights."),
            "loadable": flag("Whether more may be loaded, and these unloaded.", True),
        }
    ),
    *ENGINE_ERRORS,
)
LORA = answer(_LORA, 404, 409, *ENGINE_ERRORS)
_GONE: Schema = {
    "name": text("Its name.", "ink"),
    "object": constant("lora"),
    "deleted": flag("That it is gone.", True),
}
UNLOADED = answer(object_schema(_GONE), 409, *ENGINE_ERRORS)
